// Data, the tags: how often each is used, and adding, removing and replacing them in many captions at once.
"use strict";
(function () {
  const athanor = (window.athanor = window.athanor || {});
  const data = (athanor.data = athanor.data || {});
  const MOST = 300;
  const t = (text, ...values) => athanor.t(text, ...values);
  let h, tools = {};

  data.tagsOf = (caption) => (caption || "").split(",").map((tag) => tag.trim()).filter(Boolean);
  data.trigger = () => (data.parts.trigger ? data.parts.trigger.value.trim() : "");

  const same = (one, other) => one.toLowerCase() === other.toLowerCase();
  const escaped = (word) => word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
  /** Finds a word that stands by itself; Chinese and the like have no spaces around words. */
  const wordPattern = (word, flags) => /^[\x20-\x7e]*$/.test(word) ? new RegExp(`(?<![\\p{L}\\p{N}_])${escaped(word)}(?![\\p{L}\\p{N}_])`, flags + "u")
    : new RegExp(escaped(word), flags);

  // ---- what is done to one caption

  const added = (caption, tag, front) => {
    const others = data.tagsOf(caption).filter((each) => !same(each, tag));
    return (front ? [tag, ...others] : [...others, tag]).join(", ");
  };
  const removed = (caption, tag) => data.tagsOf(caption).filter((each) => !same(each, tag)).join(", ");

  /** Whole tags where the word is one anywhere; else the word inside sentences. */
  function replaced(captions, from, to) {
    const asTag = captions.some((caption) => data.tagsOf(caption).some((tag) => same(tag, from)));
    if (!asTag) return captions.map((caption) => (caption || "").replace(wordPattern(from, "gi"), () => to).replace(/\s+/g, " ").trim());
    return captions.map((caption) => {
      const tags = data.tagsOf(caption).map((tag) => (same(tag, from) ? to : tag)).filter(Boolean);
      return tags.filter((tag, index) => tags.findIndex((each) => same(each, tag)) === index).join(", ");
    });
  }

  const withTrigger = (caption, word) => (wordPattern(word, "i").test(caption || "") ? caption : caption ? `${word}, ${caption}` : word);

  // ---- tools over the grid

  data.buildTools = function () {
    h = athanor.h;
    const { parts, state } = data;
    const apply = (button, label, change) => {
      const targets = data.targets();
      return data.write(button, label, targets.map((picture) => [picture, change(picture.caption)]));
    };
    const tool = (text, work) => { const button = h("button", { type: "button", onclick: () => work(button) }, text); return button; };
    tools = {
      search: h("input", { type: "search", placeholder: t("Find in names and captions"), "aria-label": t("Find in names and captions"), value: state.text,
        oninput: () => { state.text = tools.search.value; data.drawGrid(); data.drawTargets(); } }),
      targets: h("span", { class: "athanor-targets", "aria-live": "polite" }),
      all: tool(t("Select all shown"), () => data.selectShown(true)), none: tool(t("Select none"), () => data.selectShown(false)),
      aside: tool(t("Set aside"), (button) => data.setAside(button)),
      tag: h("input", { type: "text", list: "athanor-tags", placeholder: t("tag"), "aria-label": t("Tag"), oninput: data.drawTargets }),
      to: h("input", { type: "text", list: "athanor-tags", placeholder: t("replace by"), "aria-label": t("Replace by"), oninput: data.drawTargets }),
    };
    const tag = () => tools.tag.value.trim();
    tools.front = tool(t("Add in front"), (button) => apply(button, t("“{0}” added", tag()), (caption) => added(caption, tag(), true)));
    tools.end = tool(t("Add at the end"), (button) => apply(button, t("“{0}” added", tag()), (caption) => added(caption, tag(), false)));
    tools.remove = tool(t("Remove"), (button) => apply(button, t("“{0}” removed", tag()), (caption) => removed(caption, tag())));
    tools.replace = tool(t("Replace"), (button) => {
      const targets = data.targets(), texts = replaced(targets.map((picture) => picture.caption), tag(), tools.to.value.trim());
      return data.write(button, t("“{0}” replaced by “{1}”", tag(), tools.to.value.trim()), targets.map((picture, index) => [picture, texts[index]]));
    });
    athanor.fill(parts.tools, h("div", { class: "athanor-toolrow" }, tools.search, tools.all, tools.none, tools.aside, tools.targets),
      h("div", { class: "athanor-toolrow" }, tools.tag, tools.front, tools.end, tools.remove, tools.to, tools.replace));
    buildSide(apply);
  };

  function buildSide(apply) {
    const { parts } = data, kept = parts.trigger ? parts.trigger.value : "";
    parts.trigger = h("input", { type: "text", value: kept, placeholder: t("for example: sks toy"), "aria-label": t("Trigger word"), oninput: data.drawTargets });
    tools.trigger = h("button", { type: "button", onclick: () => apply(tools.trigger, t("“{0}” put in front", data.trigger()), (caption) => withTrigger(caption, data.trigger())) });
    tools.find = h("input", { type: "search", placeholder: t("Find a tag"), "aria-label": t("Find a tag"), oninput: data.drawTags });
    tools.list = h("div", { class: "athanor-taglist", role: "group", "aria-label": t("Tags") });
    tools.known = h("datalist", { id: "athanor-tags" });
    athanor.fill(parts.side, h("div", { class: "athanor-box" }, h("h4", {}, t("Trigger word")), parts.trigger, h("div", { class: "athanor-buttons" }, tools.trigger)),
      h("div", { class: "athanor-box" }, h("h4", {}, t("Tags")), tools.find, tools.known, tools.list));
  }

  // ---- drawing

  /** Counts, most used first; a click shows only the pictures that have it. */
  data.drawTags = function () {
    const { state } = data, counts = new Map();
    for (const picture of state.view.pictures) {
      for (const tag of new Set(data.tagsOf(picture.caption).map((each) => each.toLowerCase()))) counts.set(tag, (counts.get(tag) || 0) + 1);
    }
    for (const tag of [...state.tags]) if (!counts.has(tag)) state.tags.delete(tag);
    const words = tools.find.value.trim().toLowerCase();
    const sorted = [...counts].sort((one, other) => other[1] - one[1] || one[0].localeCompare(other[0]));
    const wanted = sorted.filter(([tag]) => state.tags.has(tag) || !words || tag.includes(words)).slice(0, MOST);
    athanor.fill(tools.known, sorted.slice(0, MOST).map(([tag]) => h("option", { value: tag })));
    athanor.fill(tools.list, wanted.map(([tag, number]) => h("button", { type: "button", class: "athanor-tag", "aria-pressed": String(state.tags.has(tag)),
      onclick: () => pick(tag) }, h("span", {}, athanor.asIs(tag)), h("small", {}, String(number)))),
      sorted.length ? "" : h("p", { class: "athanor-quiet" }, t("No captions yet.")));
  };

  function pick(tag) {
    const { state } = data;
    if (state.tags.has(tag)) state.tags.delete(tag);
    else state.tags.add(tag);
    tools.tag.value = state.tags.has(tag) ? tag : "";
    data.changed();
  }

  /** Says what the tools would change, and greys out those that cannot. */
  data.drawTargets = function () {
    const { state } = data;
    if (!state.view || !tools.targets) return;
    const targets = data.targets(), number = targets.length, tag = tools.tag.value.trim(), word = data.trigger();
    tools.targets.textContent = state.selected.size ? t("{0} selected", state.selected.size) : t("tools change all {0} shown", number);
    const having = tag ? targets.filter((picture) => data.tagsOf(picture.caption).some((each) => same(each, tag))).length : 0;
    const inside = tag && !having ? targets.filter((picture) => wordPattern(tag, "i").test(picture.caption || "")).length : 0;
    tools.front.disabled = tools.end.disabled = !tag || !number;
    tools.remove.disabled = !having;
    tools.remove.textContent = having ? t("Remove ({0})", having) : t("Remove");
    tools.replace.disabled = !(having || inside) || !tools.to.value.trim();
    tools.replace.textContent = having || inside ? t("Replace ({0})", having || inside) : t("Replace");
    tools.none.disabled = tools.aside.disabled = !state.selected.size;
    const lacking = word ? targets.filter((picture) => !wordPattern(word, "i").test(picture.caption || "")).length : 0;
    tools.trigger.disabled = !lacking;
    tools.trigger.textContent = lacking ? t("Put in front of {0} captions", lacking) : word ? t("In every caption already") : t("Put in front");
  };
})();
