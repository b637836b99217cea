// Data, the grid: cards with a picture and its caption, made as they are scrolled to.
"use strict";
(function () {
  const athanor = (window.athanor = window.athanor || {});
  const data = (athanor.data = athanor.data || {});
  const AT_ONCE = 48;
  const t = (text, ...values) => athanor.t(text, ...values);
  const SAID = { broken: "cannot be read", caption: "no caption", small: "would be enlarged", soft: "softer than the others" };
  let drawn = [], shown = 0, anchor = null;

  /** More cards as soon as the end of the grid comes into sight. */
  data.watchEnd = function (end) {
    new IntersectionObserver((entries) => { if (entries.some((entry) => entry.isIntersecting)) more(); }, { rootMargin: "600px" }).observe(end);
  };

  data.drawGrid = function () {
    drawn = data.shownPictures();
    shown = 0;
    data.parts.grid.replaceChildren();
    more();
  };

  function more() {
    if (!data.state.view || shown >= drawn.length) { tellRest(); return; }
    const next = drawn.slice(shown, shown + AT_ONCE);
    shown += next.length;
    data.parts.grid.append(...next.map(card));
    tellRest();
  }

  function tellRest() {
    const h = athanor.h, rest = drawn.length - shown;
    athanor.fill(data.parts.end, !data.state.view ? "" : rest > 0 ? h("button", { type: "button", onclick: more }, t("Show more ({0} left)", rest))
      : !drawn.length && data.state.view.pictures.length ? h("p", { class: "athanor-quiet" }, t("No picture matches.")) : "");
  }

  const address = (file, version) => athanor.url(`data/thumbnail?${new URLSearchParams({ folder: data.state.view.folder, file, v: version || "" })}`);

  function troubles(picture) {
    const said = [...picture.kinds].filter((kind) => SAID[kind]).map((kind) => t(SAID[kind]));
    if (picture.kinds.has("copy")) said.push(t("a copy of {0}", picture.of));
    if (picture.kinds.has("alike")) said.push(t("nearly the same as {0}", picture.of));
    if (picture.kinds.has("broken") && picture.why) said[0] = athanor.said(picture.why);
    return said.join(" · ");
  }

  function card(picture) {
    const h = athanor.h, state = data.state, broken = picture.kinds.has("broken");
    const box = h("input", { type: "checkbox", checked: state.selected.has(picture.file), "aria-label": t("Select {0}", picture.file),
      onclick: (event) => select(picture, box.checked, event.shiftKey) });
    const twin = picture.of && state.byFile.get(picture.of);
    const image = broken ? h("div", { class: "athanor-broken" }, t("cannot be read"))
      : h("img", { src: address(picture.file, picture.version), alt: picture.caption || picture.file, loading: "lazy", decoding: "async" });
    const said = h("small", { class: "athanor-quiet" });
    const figure = h("figure", { class: "athanor-picture", "data-file": picture.file, "data-selected": String(box.checked) },
      h("label", { class: "athanor-thumb" }, image, box,
        twin ? h("img", { class: "athanor-twin", src: address(twin.file, twin.version), alt: "", title: twin.file, loading: "lazy" }) : ""),
      h("figcaption", {}, h("b", { title: picture.file }, athanor.asIs(picture.file)), h("em", { title: troubles(picture) }, troubles(picture)),
        broken ? "" : withRibbon(field(picture, said)), said));
    tell(picture, said);
    return figure;
  }

  function tell(picture, said, word) {
    const from = picture.width ? `${picture.width} × ${picture.height}` : "", to = data.bucketOf(picture);
    said.textContent = [from && to ? `${from} → ${to}` : from, word].filter(Boolean).join(" · ");
  }

  /** The caption: written when the field is left, or with Ctrl+Enter, which goes on to the next one. */
  function field(picture, said) {
    const area = athanor.h("textarea", { rows: 3, value: picture.caption || "", placeholder: t("What can be seen in it"), "aria-label": t("Caption of {0}", picture.file), spellcheck: "false",
      oninput: () => tell(picture, said, t("not written yet")), onchange: () => save(picture, area, said),
      onkeydown: (event) => {
        if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); next(area); }
        if (event.key === "Escape") { area.value = picture.caption || ""; tell(picture, said); }
      } });
    return area;
  }

  const withRibbon = (area) => [area, athanor.ribbon(area)];

  function next(area) {
    const areas = [...data.parts.grid.querySelectorAll("textarea")];
    const following = areas[areas.indexOf(area) + 1];
    if (following) following.focus();
    else area.blur();
  }

  async function save(picture, area, said) {
    const text = area.value.trim().replace(/\s+/g, " ");
    if (text === (picture.caption || "")) { tell(picture, said); return; }
    try {
      const edits = [{ file: picture.file, text, was: picture.caption }];
      const done = await athanor.api("data/captions", { folder: data.state.view.folder, label: t("caption of {0}", picture.file), edits });
      data.took(picture, text);
      data.state.view.undo = done.undo;
      tell(picture, said, t("written"));
      data.changed(false);
    } catch (error) {
      tell(picture, said, t("not written"));
      athanor.say(...(error.problems || [String(error)]));
    }
  }

  // ---- selecting

  function select(picture, chosen, range) {
    const files = drawn.map((each) => each.file), here = files.indexOf(picture.file), from = files.indexOf(anchor);
    const some = range && from >= 0 ? files.slice(Math.min(here, from), Math.max(here, from) + 1) : [picture.file];
    anchor = picture.file;
    for (const file of some) data.state.selected[chosen ? "add" : "delete"](file);
    data.showSelection();
  }

  data.selectShown = function (chosen) {
    if (!chosen) data.state.selected.clear();
    else for (const picture of drawn) data.state.selected.add(picture.file);
    data.showSelection();
  };

  data.showSelection = function () {
    for (const figure of data.parts.grid.children) {
      const chosen = data.state.selected.has(figure.dataset.file);
      figure.dataset.selected = String(chosen);
      figure.querySelector("input[type=checkbox]").checked = chosen;
    }
    data.drawTargets();
  };
})();
