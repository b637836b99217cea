// Data: a folder's pictures with their captions, what may be wrong with them, and its tags.
"use strict";
(function () {
  const athanor = (window.athanor = window.athanor || {});
  athanor.screens = athanor.screens || {};
  const TROUBLES = { broken: "cannot be read", tiny: "very small", duplicate: "a copy", caption: "no caption" };
  let h, parts, view = null, undo = null;

  function build(panel) {
    h = athanor.h;
    parts = {
      folder: h("input", { type: "text", placeholder: "Full path of a folder", list: "athanor-data-folders", "aria-label": "Folder with pictures",
        onkeydown: (event) => { if (event.key === "Enter") open(); } }),
      folders: h("datalist", { id: "athanor-data-folders" }), said: h("div", { "aria-live": "polite" }), tags: h("div", { class: "athanor-tags" }),
      grid: h("div", { class: "athanor-pictures" }), open: h("button", { type: "button", onclick: open }, "Show"),
      use: h("button", { type: "button", class: "athanor-primary", disabled: true, onclick: () => athanor.useFolder(view.folder) }, "Train on these"),
      undo: h("button", { type: "button", disabled: true, onclick: undoLast }, "Undo last caption"),
    };
    athanor.fill(panel, h("div", { class: "athanor-row" }, parts.folder, parts.folders, parts.open, parts.undo, parts.use), parts.said, parts.tags, parts.grid);
    athanor.fill(parts.said, h("p", { class: "athanor-quiet" }, "Choose a folder to see its pictures and captions side by side."));
    athanor.api("me").then((me) => athanor.fill(parts.folders, me.roots.map((root) => h("option", { value: root })))).catch(() => {});
  }

  async function open() {
    await athanor.busy(parts.open, async () => {
      try {
        view = await athanor.api(`data?${new URLSearchParams({ folder: parts.folder.value.trim() })}`);
        draw();
      } catch (error) {
        athanor.fill(parts.said, athanor.problems(error.problems), error.problems[0].includes("may use")
          ? h("button", { type: "button", onclick: add }, "Let this page use the folder") : "");
      }
    });
  }

  async function add(event) {
    await athanor.busy(event.currentTarget, async () => {
      await athanor.api("data/folders", { path: parts.folder.value.trim() });
      await open();
    });
  }

  function draw() {
    parts.use.disabled = !view.pictures.length;
    const counts = {};
    for (const card of view.pictures) for (const problem of card.problems) counts[problem] = (counts[problem] || 0) + 1;
    const found = Object.entries(counts).map(([problem, count]) => `${count} ${TROUBLES[problem]}`);
    const captioned = view.pictures.filter((card) => card.caption).length;
    athanor.fill(parts.said, h("p", {}, `${athanor.count(view.pictures.length, "picture")}, ${captioned} with captions` + (found.length ? "; " + found.join(", ") : "; nothing wrong found") + "."),
      view.left_out ? h("p", { class: "athanor-quiet" }, `${view.left_out} further pictures are not shown.`) : "");
    athanor.fill(parts.tags, view.tags.slice(0, 40).map(([tag, count]) => h("span", {}, tag, h("small", {}, ` ${count}`))));
    athanor.fill(parts.grid, view.pictures.map(card));
  }

  function card(picture) {
    const text = h("textarea", { rows: 4, value: picture.caption || "", placeholder: "What can be seen in it", "aria-label": `Caption of ${picture.file}`,
      onchange: () => save(picture, text, state) });
    const state = h("small", { class: "athanor-quiet" }, picture.width ? `${picture.width} × ${picture.height}` : "");
    const address = `data/thumbnail?${new URLSearchParams({ folder: view.folder, file: picture.file })}`;
    const broken = picture.problems.includes("broken");
    return h("figure", {}, broken ? h("div", { class: "athanor-broken" }, "cannot be read") : h("img", { src: athanor.url(address), alt: picture.caption || picture.file, loading: "lazy" }),
      h("figcaption", {}, h("b", { title: picture.file }, picture.file), picture.problems.map((problem) => h("em", {}, TROUBLES[problem] + (picture.same_as ? ` of ${picture.same_as}` : ""))), broken ? "" : text, state));
  }

  async function save(picture, text, state) {
    try {
      const done = await athanor.api("data/caption", { folder: view.folder, file: picture.file, text: text.value });
      undo = { file: picture.file, text: done.former || "" };
      parts.undo.disabled = false;
      state.textContent = "saved";
    } catch (error) {
      athanor.say(...error.problems);
    }
  }

  async function undoLast() {
    await athanor.busy(parts.undo, () => athanor.api("data/caption", { folder: view.folder, ...undo }));
    parts.undo.disabled = true;
    await open();
  }

  athanor.screens.data = { build };
})();
