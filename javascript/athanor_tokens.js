// The token ribbon: how the model's tokenizer splits a text, and how many of its 75 places that takes.
"use strict";
(function () {
  const athanor = (window.athanor = window.athanor || {});
  const t = (...words) => athanor.t(...words);
  const known = new Map();
  let wanted = new Map(), timer = null;

  /** Asks for all texts that wait at once. */
  function ask() {
    const asked = wanted;
    wanted = new Map();
    const texts = [...asked.keys()].slice(0, 200);
    athanor.api("tokens", { texts }).then((answer) => {
      texts.forEach((text, index) => {
        if (answer.texts[index]) known.set(text, answer.texts[index]);
        asked.get(text).forEach((draw) => draw(answer.texts[index] || null));
      });
      if (known.size > 2000) known.clear();
    }).catch(() => texts.forEach((text) => asked.get(text).forEach((draw) => draw(null))));
  }

  function tokensOf(text, draw) {
    if (known.has(text)) return draw(known.get(text));
    wanted.set(text, [...(wanted.get(text) || []), draw]);
    clearTimeout(timer);
    timer = setTimeout(ask, 200);
  }

  /** A ribbon that follows an input or textarea; its height is always there, so that nothing moves. */
  athanor.ribbon = function (input) {
    const h = athanor.h;
    const pieces = h("span", { class: "athanor-pieces", "aria-hidden": "true" }), count = h("small", {});
    const ribbon = h("p", { class: "athanor-ribbon", title: t("How the model's tokenizer splits this text") }, pieces, count);
    const follow = () => {
      const text = input.value.trim();
      if (!text) { athanor.fill(pieces); count.textContent = ""; return; }
      tokensOf(text, (found) => {
        if (text !== input.value.trim() || !found) return;
        athanor.fill(pieces, found.tokens.slice(0, 120).map(([piece, ends]) => h("i", { class: ends ? "athanor-ends" : "" }, athanor.asIs(piece))));
        count.textContent = t("{0} of {1} tokens", found.count, found.room * Math.max(1, Math.ceil(found.count / found.room)));
        ribbon.classList.toggle("athanor-full", found.count > found.room);
      });
    };
    for (const event of ["input", "focus", "athanor-set"]) input.addEventListener(event, follow);
    if (input.value) follow();
    return ribbon;
  };
})();
