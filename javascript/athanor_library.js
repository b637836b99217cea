// Library: cards of what was trained here and of the host's other files; what can be done with each.
"use strict";
(function () {
  const athanor = (window.athanor = window.athanor || {});
  athanor.screens = athanor.screens || {};
  const t = (...words) => athanor.t(...words);
  const METHODS = { lora: "LoRA", pivotal: "Pivotal tuning", textual_inversion: "Textual Inversion", hypernetwork: "Hypernetwork", dreambooth: "DreamBooth",
    aesthetic_gradient: "Aesthetic Gradient" };
  const FAMILIES = { sd1: "SD1", sd2: "SD2", sdxl: "SDXL" };
  const WITH_TRIGGER = ["lora", "dreambooth"];
  let h, parts, entries = [], canDraw = false, drawn = "";

  function build(panel) {
    h = athanor.h;
    parts = { search: h("input", { type: "search", placeholder: t("Find by name or trigger word"), "aria-label": t("Find"), oninput: draw }),
      kind: h("select", { "aria-label": t("Kind"), onchange: draw }), grid: h("div", { class: "athanor-cards" }), drawing: h("div") };
    athanor.fill(panel, h("div", { class: "athanor-row athanor-filter" }, parts.search, parts.kind), parts.drawing, parts.grid);
    athanor.gridPanel(parts.drawing);
  }

  async function shown() {
    if (!parts) return;
    try {
      const said = await athanor.api("library");
      if (JSON.stringify(said) === drawn) return;
      drawn = JSON.stringify(said);
      entries = said.entries;
      canDraw = said.can_draw;
      drawKinds();
      draw();
    } catch (error) {
      athanor.fill(parts.grid, athanor.problems(error.problems || [String(error)]));
    }
  }

  function drawKinds() {
    const kinds = [...new Set(entries.map((entry) => entry.method))], chosen = parts.kind.value;
    athanor.fill(parts.kind, h("option", { value: "" }, t("Every kind")), kinds.map((kind) => h("option", { value: kind }, METHODS[kind] || kind)));
    parts.kind.value = kinds.includes(chosen) ? chosen : "";
    parts.kind.hidden = kinds.length < 2;
  }

  function draw() {
    const words = parts.search.value.trim().toLowerCase(), kind = parts.kind.value;
    const fitting = entries.filter((entry) => (!kind || entry.method === kind) && `${entry.name} ${entry.trigger}`.toLowerCase().includes(words));
    athanor.fill(parts.grid, fitting.length ? fitting.map(card)
      : h("p", { class: "athanor-quiet" }, entries.length ? t("Nothing of that name.") : t("What you train appears here, beside the files that the WebUI has already.")));
  }

  function picture(entry) {
    const query = new URLSearchParams({ id: entry.id, t: entry.picture });
    if (entry.picture) return h("img", { src: athanor.url(`library/picture?${query}`), alt: "", loading: "lazy" });
    if (entry.sample) return h("img", { src: athanor.url(`jobs/${encodeURIComponent(entry.run)}/samples/${encodeURIComponent(entry.sample)}`), alt: "", loading: "lazy" });
    return h("div", { class: "athanor-blank", "aria-hidden": "true" }, entry.name.slice(0, 1).toUpperCase());
  }

  const sentence = (text) => athanor.said(text).replace(/^[a-z]/, (letter) => letter.toUpperCase());

  function facts(entry) {
    const sites = [entry.sites.unet ? t("{0} in the UNet", entry.sites.unet) : "", entry.sites.text ? t("{0} in the text encoder", entry.sites.text) : ""].filter(Boolean);
    const date = entry.changed ? new Date(entry.changed * 1000).toLocaleDateString() : "";
    return [
      [t("Kind"), [METHODS[entry.method] || entry.method, FAMILIES[entry.family]].filter(Boolean).join(" · ")],
      [t("Base"), entry.base.replace(/\.(safetensors|ckpt)$/, "")], [t("Rank"), entry.rank], [t("Steps"), entry.steps], [t("Layers"), sites.join(", ")],
      [t("Size"), athanor.size(entry.bytes)], [t("Date"), date], [t("Near"), entry.words], [t("Notes"), sentence(entry.notes)],
    ].filter(([, value]) => value);
  }

  function card(entry) {
    const state = entry.is_there ? t("among the WebUI's models") : entry.finished ? t("not in the WebUI yet") : t("until step {0}", entry.step);
    const where = entry.id ? "" : h("em", { class: "athanor-badge athanor-soft" }, state);
    return h("article", { class: "athanor-entry", "aria-label": entry.name }, picture(entry),
      h("b", { title: entry.file }, athanor.asIs(entry.name)), where,
      h("small", {}, WITH_TRIGGER.includes(entry.method) ? (entry.trigger ? `“${entry.trigger}”` : t("no trigger word")) : METHODS[entry.method] || entry.method),
      entry.problem ? athanor.problems([entry.problem]) : h("dl", {}, facts(entry).flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, String(value))])),
      h("div", { class: "athanor-buttons" }, buttons(entry)));
  }

  function buttons(entry) {
    const run = { id: entry.run, method: entry.method };
    const use = entry.id ? () => athanor.useInPrompt(WITH_TRIGGER.includes(entry.method) ? entry.trigger : "", entry.tag)
      : (event) => athanor.useOutput(event.currentTarget, run, "").then(shown);
    const button = (label, onclick, kind) => h("button", { type: "button", class: kind || "", onclick }, label);
    return [
      entry.tag ? button(t("Use in prompt"), use, "athanor-primary") : entry.is_there ? "" : button(t("Put into the WebUI"), use, "athanor-primary"),
      canDraw && entry.method === "lora" && !entry.problem ? button(t("Grid"), (event) => athanor.openGrid(event.currentTarget, entry)) : "",
      entry.run ? button(t("Its run"), () => athanor.openRun(entry.run)) : "",
      entry.id ? button(t("Rename"), (event) => rename(event.currentTarget, entry)) : "",
      entry.id ? button(t("Delete"), (event) => remove(event.currentTarget, entry)) : "",
    ];
  }

  async function rename(button, entry) {
    const name = await athanor.askText(t("Rename “{0}”", entry.name), t("Prompts name it so from then on. Its card and its preview go with it."), entry.name, t("Rename"));
    if (!name || name === entry.name) return;
    await athanor.busy(button, async () => {
      await athanor.api("library/rename", { id: entry.id, name });
      athanor.refreshCards(entry.method);
      await shown();
    });
  }

  async function remove(button, entry) {
    const answer = await athanor.ask(t("Delete “{0}”?", entry.name), t("The file, its card and its preview go to the trash folder of the runs."), [["yes", t("Delete"), true]]);
    if (!answer) return;
    await athanor.busy(button, async () => {
      await athanor.api("library/delete", { id: entry.id });
      athanor.refreshCards(entry.method);
      athanor.say(t("“{0}” lies in the trash folder of the runs.", entry.name));
      await shown();
    });
  }

  athanor.screens.library = { build, shown };
})();
