// Library: cards of what was trained here and of the host's other files.
"use strict";
(function () {
  const athanor = (window.athanor = window.athanor || {});
  athanor.screens = athanor.screens || {};
  let h, parts, entries = [];

  function build(panel) {
    h = athanor.h;
    parts = { search: h("input", { type: "search", placeholder: "Find by name or trigger word", "aria-label": "Find", oninput: draw }), grid: h("div", { class: "athanor-cards" }) };
    athanor.fill(panel, h("div", { class: "athanor-row" }, parts.search), parts.grid);
  }

  async function shown() {
    if (!parts) return;
    try {
      entries = (await athanor.api("library")).entries;
      draw();
    } catch (error) {
      athanor.fill(parts.grid, athanor.problems(error.problems || [String(error)]));
    }
  }

  function draw() {
    const words = parts.search.value.trim().toLowerCase();
    const fitting = entries.filter((entry) => `${entry.name} ${entry.trigger}`.toLowerCase().includes(words));
    athanor.fill(parts.grid, fitting.length ? fitting.map(card) : h("p", { class: "athanor-quiet" }, entries.length ? "Nothing of that name." : "What you train appears here."));
  }

  function card(entry) {
    const picture = entry.sample ? h("img", { src: athanor.url(`jobs/${encodeURIComponent(entry.run)}/samples/${encodeURIComponent(entry.sample)}`), alt: "", loading: "lazy" })
      : h("div", { class: "athanor-blank" }, entry.name.slice(0, 1).toUpperCase());
    const facts = [entry.base, athanor.size(entry.bytes), entry.finished ? "" : `until step ${entry.step}`].filter(Boolean).join(" · ");
    const trigger = entry.method === "lora" ? entry.trigger : "";
    const use = (event) => entry.run ? athanor.useOutput(event.currentTarget, { id: entry.run, method: entry.method }, entry.file)
      : athanor.useInPrompt([trigger, entry.tag].filter(Boolean).join(" "));
    return h("article", { class: "athanor-entry" }, picture, h("b", { title: entry.file }, entry.name), h("small", {}, entry.trigger ? `“${entry.trigger}”` : "no trigger word"), h("small", {}, facts),
      h("div", { class: "athanor-buttons" }, entry.tag ? h("button", { type: "button", class: "athanor-primary", onclick: use }, "Use in prompt") : "",
        entry.run ? h("button", { type: "button", onclick: () => athanor.openRun(entry.run) }, "Its run") : ""));
  }

  athanor.screens.library = { build, shown };
})();
