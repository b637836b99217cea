// Fields made from the schema of options: one for each option, grouped, with its help; changed values are marked.
"use strict";
(function () {
  const athanor = (window.athanor = window.athanor || {});

  const t = (...words) => athanor.t(...words);
  const FIRST_OPEN = ["The adapter", "How long and how strongly"];
  const PLACEHOLDERS = { sample_prompts: "one on each line; empty draws four that tell what was learned" };

  /** A field with a label that belongs to it, and help where there is some. */
  athanor.labelled = function (text, help, input, more) {
    const h = athanor.h;
    input.id = input.id || `athanor-field-${Math.random().toString(36).slice(2)}`;
    return h("div", { class: "athanor-field" },
      h("div", { class: "athanor-label" }, h("label", { for: input.id }, text), help ? athanor.help(help) : ""), input, more || "");
  };

  /** An option's name as words, in the person's language. */
  athanor.optionTitle = (name) => t(name.replaceAll("_", " "));

  /** What an option is while nobody changes it: the recipe's value, else its default. */
  const standing = (option, state) => (option.name in state.recipe ? state.recipe[option.name] : option.default);

  function shown(option, value) {
    if (value === null || value === undefined) return "";
    if (option.kind === "list") return value.join("\n");
    if (option.kind === "map") return Object.entries(value).map(([name, number]) => `${name}=${number}`).join(", ");
    return String(value);
  }

  athanor.differs = (option, value, state) => shown(option, value) !== shown(option, standing(option, state));

  function chooser(option, value) {
    const h = athanor.h;
    const words = option.kind === "bool" ? ["", "true", "false"] : option.choices;
    const titles = { "": t("as the model says"), true: t("yes"), false: t("no") };
    return h("select", {}, words.map((word) =>
      h("option", { value: word, selected: word === shown(option, value) }, option.kind === "bool" ? titles[word] : word)));
  }

  function inputFor(option, value) {
    const h = athanor.h;
    if (option.kind === "bool" && !option.optional) return h("input", { type: "checkbox", checked: Boolean(value) });
    if (option.kind === "choice" || option.kind === "bool") return chooser(option, value);
    if (option.kind === "list") return h("textarea", { rows: 3, value: shown(option, value), placeholder: t(PLACEHOLDERS[option.name] || "one on each line") });
    const range = option.minimum !== null && option.maximum !== null ? t("{0} to {1}", option.minimum, option.maximum) : "";
    return h("input", { type: "text", inputmode: ["int", "float"].includes(option.kind) ? "decimal" : false,
      value: shown(option, value), placeholder: option.optional ? t("not set") : range });
  }

  function read(option, input) {
    if (input.type === "checkbox") return input.checked;
    const text = input.value.trim();
    if (text === "" && option.optional) return null;
    if (option.kind === "list") return text.split("\n").map((line) => line.trim()).filter(Boolean);
    return text;
  }

  function fieldFor(option, state, changed) {
    const input = inputFor(option, option.name in state.changed ? state.changed[option.name] : standing(option, state));
    const reset = athanor.h("button", { type: "button", class: "athanor-reset", title: t("Back to the recipe's value"), onclick: () => {
      delete state.changed[option.name];
      field.replaceWith(fieldFor(option, state, changed));
      changed();
    } }, t("undo"));
    const title = athanor.optionTitle(option.name), help = t(option.help);
    const field = athanor.labelled(title + (option.unit && !option.name.includes(option.unit) ? ` (${t(option.unit)})` : ""), help, input, reset);
    field.dataset.words = `${option.name} ${option.name.replaceAll("_", " ")} ${title} ${help}`.toLowerCase();
    const mark = () => field.classList.toggle("athanor-changed", option.name in state.changed);
    input.addEventListener("change", () => {
      const now = read(option, input);
      if (athanor.differs(option, now, state)) state.changed[option.name] = now;
      else delete state.changed[option.name];
      mark();
      changed();
    });
    mark();
    return field;
  }

  /**
   * Fills `place` with a field for each option of `state.schema` that is not in `left`. `state.recipe` holds the
   * recipe's values and `state.changed` the person's own; `changed` is called after each change.
   */
  athanor.drawOptions = function (place, state, left, changed) {
    const h = athanor.h, groups = new Map();
    for (const option of state.schema) {
      if (left.includes(option.name)) continue;
      if (!groups.has(option.group)) groups.set(option.group, []);
      groups.get(option.group).push(fieldFor(option, state, changed));
    }
    const open = new Set([...place.children].filter((group) => group.open).map((group) => group.dataset.group));
    if (!place.children.length) FIRST_OPEN.forEach((title) => open.add(title));
    athanor.fill(place, [...groups].map(([title, fields]) =>
      h("details", { class: "athanor-group", "data-group": title, open: open.has(title) }, h("summary", {}, t(title), h("small", {}, fields.length)),
        h("div", { class: "athanor-grid" }, fields))));
  };

  /** Shows the fields whose name or help holds the words, or only the changed ones; groups with such fields open. */
  athanor.filterOptions = function (place, words, changedOnly) {
    const wanted = words.trim().toLowerCase(), all = !wanted && !changedOnly;
    for (const group of place.children) {
      const fields = [...group.querySelectorAll(".athanor-field")];
      for (const field of fields) {
        field.hidden = !field.dataset.words.includes(wanted) || (changedOnly && !field.classList.contains("athanor-changed"));
      }
      group.hidden = fields.every((field) => field.hidden);
      if (!all && !group.hidden) group.open = true;
    }
  };
})();
