// The page around the tab in the person's language: what gradio made is looked through for texts that
// `window.localization` has, as WebUIs do it. The tab itself speaks for itself (athanor.t).
"use strict";
(function () {
  const OTHERS = "#athanor, code, pre, script, style, textarea, [role=listbox]"; // the tab's, and what persons wrote
  const HINTS = ["placeholder", "aria-label"];
  const texts = (root) => {
    const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT), found = [];
    while (walker.nextNode()) found.push(walker.currentNode);
    return found;
  };

  function speak(text) {
    const parent = text.parentElement, plain = text.data.trim();
    if (!plain || !parent || parent.closest(OTHERS)) return;
    const said = athanor.said(plain);
    if (said !== plain) text.data = text.data.replace(plain, () => said);
  }

  function hint(element) {
    for (const name of HINTS) {
      const text = element.getAttribute(name), said = text && athanor.said(text);
      if (said && said !== text) element.setAttribute(name, said);
    }
  }

  function look(root) {
    if (root.nodeType === Node.TEXT_NODE) return speak(root);
    if (root.nodeType !== Node.ELEMENT_NODE || root.closest("#athanor")) return;
    texts(root).forEach(speak);
    [root, ...root.querySelectorAll(HINTS.map((name) => `[${name}]`).join())].forEach((element) => element.closest("#athanor") || hint(element));
  }

  /** gradio puts scripts into the page in an order of its own, so the words may come later than this. */
  function start(patience) {
    if (!window.athanor || !athanor.said || !window.localization) return patience && setTimeout(start, 50, patience - 1);
    if (!Object.keys(window.localization).length) return;
    new MutationObserver((changes) => changes.forEach((change) => {
      if (change.type === "characterData") speak(change.target);
      else change.addedNodes.forEach(look);
    })).observe(document.body, { childList: true, subtree: true, characterData: true });
    look(document.body);
  }

  start(600);
})();
