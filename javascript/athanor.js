// The tab's frame: where it is put, how it asks our routes, which screen is shown. The screens register themselves in
// athanor.screens (athanor_train.js, athanor_runs.js, athanor_data.js, athanor_library.js).
"use strict";
(function () {
  const athanor = (window.athanor = window.athanor || {});
  athanor.screens = athanor.screens || {};
  const ORDER = ["data", "train", "runs", "library"];
  const TITLES = { data: "Data", train: "Train", runs: "Runs", library: "Library" };

  // ---- small helpers

  /** A text of the page in the person's language: `t("{0} of {1}", 2, 5)`. Hosts put the chosen language into
   * `window.localization`; a text that it lacks stays English. */
  athanor.t = function (text, ...values) {
    const known = window.localization || {};
    const said = Object.prototype.hasOwnProperty.call(known, text) ? known[text] : text;
    return said.replace(/\{(\d+)\}/g, (_, number) => String(values[number]));
  };

  /** An element: h("button", {class: "x", onclick: f}, "text", child). Texts are set as text, never as HTML. */
  athanor.h = function (tag, attributes, ...children) {
    const svg = ["svg", "path", "line", "circle", "text", "g", "polyline", "title"].includes(tag);
    const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) {
      if (value === undefined || value === null || value === false) continue;
      if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else if (["value", "checked", "disabled", "open", "selected"].includes(name)) element[name] = value;
      else element.setAttribute(name, value === true ? "" : value);
    }
    element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
    return element;
  };
  const h = athanor.h;

  /** A person's own words (a tag, a name, a prompt), in two pieces: hosts replace every piece of text on the page that is a
   * key of the chosen language, and a picture tagged "red" is not tagged in Chinese. */
  athanor.asIs = (text) => [text.slice(0, 1), text.slice(1)].filter(Boolean);

  athanor.fill = function (element, ...children) {
    element.replaceChildren(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
    return element;
  };

  athanor.duration = function (seconds) {
    if (seconds === null || seconds === undefined || !isFinite(seconds)) return "";
    if (seconds < 90) return athanor.t("{0} s", Math.max(1, Math.round(seconds)));
    const minutes = Math.round(seconds / 60);
    return minutes < 90 ? athanor.t("{0} min", minutes) : athanor.t("{0} h {1} min", Math.floor(minutes / 60), minutes % 60);
  };

  athanor.size = function (bytes) {
    if (!bytes) return "";
    const units = ["B", "KB", "MB", "GB", "TB"];
    const power = Math.min(units.length - 1, Math.floor(Math.log2(bytes) / 10));
    return `${(bytes / 1024 ** power).toFixed(power && bytes / 1024 ** power < 10 ? 1 : 0)} ${units[power]}`;
  };

  athanor.count = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;

  /** A path as it is pasted: Windows copies one with quotes around it. */
  athanor.path = (text) => text.trim().replace(/^(["'])(.*)\1$/, "$2");

  athanor.newKey = () => Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16)).join("");

  // ---- our routes

  athanor.url = (path) => new URL("athanor/v1/" + path, document.baseURI).href;

  /** An answer of a route; throws an Error whose `problems` are sentences. */
  athanor.api = async function (path, body, raw) {
    const options = { credentials: "same-origin", headers: {} };
    if (body !== undefined) {
      options.method = "POST";
      options.body = raw ? body : JSON.stringify(body);
      if (!raw) options.headers["Content-Type"] = "application/json";
    }
    let answer;
    try {
      answer = await fetch(athanor.url(path), options);
    } catch (error) {
      throw Object.assign(new Error("offline"), { problems: [athanor.t("The WebUI does not answer. Is it still running?")] });
    }
    const content = await answer.json().catch(() => ({}));
    if (answer.ok) return content;
    const problems = content.problems || [content.detail || athanor.t("The WebUI refused this ({0}).", answer.status)];
    throw Object.assign(new Error(problems[0]), { problems, status: answer.status });
  };

  // ---- what is said to the person

  athanor.problems = (sentences, kind) =>
    sentences && sentences.length
      ? h("ul", { class: `athanor-said athanor-${kind || "problem"}`, role: kind ? "status" : "alert" },
          sentences.map((sentence) => h("li", {}, athanor.said(sentence))))
      : "";

  athanor.say = function (...sentences) {
    const place = document.getElementById("athanor-toast");
    if (!place) return;
    athanor.fill(place, sentences.map((sentence) => h("p", {}, athanor.said(sentence))));
    place.classList.add("athanor-shown");
    clearTimeout(athanor.sayTimer);
    athanor.sayTimer = setTimeout(() => place.classList.remove("athanor-shown"), 6000);
  };

  /** Runs `work` with the button greyed out, and says what went wrong. */
  athanor.busy = async function (button, work) {
    button.disabled = true;
    try {
      return await work();
    } catch (error) {
      athanor.say(...(error.problems || [String(error)]));
    } finally {
      button.disabled = false;
    }
  };

  /** A word of jargon with its explanation: a button, so that the keyboard reaches it too. */
  athanor.help = function (text) {
    const id = `athanor-help-${Math.random().toString(36).slice(2)}`, bubble = h("span", { class: "athanor-bubble", role: "tooltip", id }, text);
    const keepInside = () => { // at the right edge it moves to the left
      bubble.style.left = "0";
      bubble.style.left = `${Math.min(0, document.documentElement.clientWidth - 12 - bubble.getBoundingClientRect().right)}px`;
    };
    return h("span", { class: "athanor-help", onmouseenter: keepInside, onfocusin: keepInside },
      h("button", { type: "button", class: "athanor-mark", "aria-label": athanor.t("What is this?"), "aria-describedby": id }, "?"), bubble);
  };

  // ---- prompts of the host

  const findPrompt = () => document.querySelector("#txt2img_prompt textarea, textarea#txt2img_prompt");

  /** What the tab with the prompt is called: WebUIs, and languages, name it differently. */
  function tabOf(prompt) {
    const panel = prompt.closest("#tab_txt2img"); // not a tab within it
    const own = panel && panel.id && document.querySelector(`[aria-controls="${CSS.escape(panel.id)}"]`);
    if (own) return own.textContent.trim();
    const panels = panel ? [...panel.parentElement.children].filter((each) => each.matches(".tabitem")) : []; // gradio 3
    const buttons = panel ? panel.parentElement.querySelectorAll(":scope > .tab-nav > button") : [];
    return buttons.length === panels.length && panels.length ? buttons[panels.indexOf(panel)].textContent.trim() : "txt2img";
  }

  /** The prompt with a text that it lacks at its end. A tag takes the place of one for the same file: both together would
   * be twice as strong. */
  athanor.withText = function (prompt, text) {
    const isThere = text.startsWith("<") ? prompt.includes(text) : prompt.replace(/<[^<>]*>/g, " ").includes(text); // a word within a tag is none
    if (!text || isThere) return prompt;
    const tag = /^<(\w+:[^:<>]+):[^<>]*>$/.exec(text), same = tag && new RegExp(`<${tag[1].replace(/[.*+?^${}()|[\]\\]/g, "\\$&")}(:[^<>]*)?>`);
    return same && same.test(prompt) ? prompt.replace(same, () => text) : [prompt.trim(), text].filter(Boolean).join(" ");
  };

  /** Puts texts (a trigger word, a tag) that it lacks into the prompt. Where the page has none yet (some hosts make a tab when it is first shown), it
   * waits for it, and is copied meanwhile. */
  athanor.useInPrompt = async function (...texts) {
    const prompt = findPrompt(), text = texts.filter(Boolean).join(" ");
    athanor.waitingText = prompt ? null : text;
    if (!prompt) {
      if (navigator.clipboard) await navigator.clipboard.writeText(text).catch(() => {});
      athanor.say(athanor.t("Copied, and put into the prompt as soon as it is shown: {0}", text));
      return;
    }
    const joined = texts.reduce(athanor.withText, prompt.value);
    if (joined !== prompt.value) {
      Object.getOwnPropertyDescriptor(HTMLTextAreaElement.prototype, "value").set.call(prompt, joined);
      prompt.dispatchEvent(new Event("input", { bubbles: true }));
    }
    athanor.say(athanor.t("In the prompt of “{0}”: {1}", tabOf(prompt), text));
  };

  // ---- the frame

  athanor.show = function (name) {
    athanor.shown = name;
    for (const each of ORDER) {
      const chosen = each === name;
      const panel = document.getElementById(`athanor-screen-${each}`);
      const tab = document.getElementById(`athanor-to-${each}`);
      if (!panel) continue;
      panel.hidden = !chosen;
      tab.setAttribute("aria-selected", String(chosen));
      tab.tabIndex = chosen ? 0 : -1;
    }
    const screen = athanor.screens[name];
    if (screen && screen.shown) screen.shown();
  };

  function walkTabs(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const names = ORDER.filter((name) => athanor.screens[name]);
    const next = names[(names.indexOf(athanor.shown) + step + names.length) % names.length];
    athanor.show(next);
    document.getElementById(`athanor-to-${next}`).focus();
  }

  function build(root) {
    const names = ORDER.filter((name) => athanor.screens[name]);
    const bar = h("div", { class: "athanor-tabs", role: "tablist", "aria-label": "Athanor", onkeydown: walkTabs },
      names.map((name) => h("button", {
        type: "button", role: "tab", id: `athanor-to-${name}`, "aria-controls": `athanor-screen-${name}`,
        "data-title": athanor.t(TITLES[name]), onclick: () => athanor.show(name),
      }, athanor.t(TITLES[name]))));
    const panels = names.map((name) =>
      h("section", { id: `athanor-screen-${name}`, class: "athanor-screen", role: "tabpanel",
        "aria-labelledby": `athanor-to-${name}`, hidden: true }));
    athanor.fill(root, athanor.setupBanner ? athanor.setupBanner() : "", bar, panels, h("div", { id: "athanor-toast", role: "status", "aria-live": "polite" }));
    names.forEach((name, index) => athanor.screens[name].build(panels[index]));
    athanor.show(athanor.shown || "train");
  }

  /** Whether the tab can be seen now: nothing is asked for a tab that is not. */
  athanor.isVisible = function () {
    const root = document.getElementById("athanor");
    return Boolean(root && root.offsetParent && document.visibilityState === "visible");
  };

  // What the other scripts bring; some hosts load them in any order, and after the tab is there.
  const PARTS = ["said", "setupBanner", "labelled", "drawOptions", "plot", "beforePanel", "picturePlace", "ribbon", "methodChooser", "presetRow"];
  const isWhole = () => ORDER.every((name) => athanor.screens[name]) && PARTS.every((name) => athanor[name]);

  function mount() {
    if (athanor.waitingText && findPrompt()) {
      const text = athanor.waitingText;
      athanor.waitingText = null;
      setTimeout(() => athanor.useInPrompt(text), 300); // after its own first value
    }
    const refusal = document.getElementById("athanor-refusal"); // a WebUI that we cannot work in
    if (refusal && refusal.textContent !== athanor.t(refusal.textContent)) {
      refusal.textContent = athanor.t(refusal.textContent);
    }
    const root = document.getElementById("athanor");
    const prose = root && root.closest(".prose"); // gradio's looks for text: margins, borders and colours of everything in it
    if (prose) prose.classList.remove("prose");
    if (root && !root.querySelector(".athanor-tabs") && isWhole()) build(root);
  }

  // Hosts make a tab's content whenever they like, some of them anew.
  let waiting = false;
  new MutationObserver(() => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; mount(); });
  }).observe(document.documentElement, { childList: true, subtree: true });
  document.addEventListener("DOMContentLoaded", mount);
  setInterval(mount, 1000); // a script that comes last changes nothing in the page
  athanor.mount = mount;
})();
