// Which method should I use: a table of methods for a goal, a number of pictures and a graphics card's memory.
"use strict";
(function () {
  const athanor = (window.athanor = window.athanor || {});
  const t = (...words) => athanor.t(...words);

  /** {button, panel}: the button shows and hides the panel; `use` is called with the method that was chosen. */
  athanor.methodChooser = function (form, use) {
    const h = athanor.h;
    const goal = h("select", { onchange: ask }), pictures = h("input", { type: "text", inputmode: "numeric", placeholder: t("not known yet"), onchange: ask });
    const memory = h("select", { onchange: ask }), table = h("div", { class: "athanor-wide", "aria-live": "polite" });
    const panel = h("div", { class: "athanor-chooser", id: "athanor-chooser", hidden: true },
      h("div", { class: "athanor-pair athanor-three" }, athanor.labelled(t("What for"), "", goal), athanor.labelled(t("Number of pictures"), "", pictures),
        athanor.labelled(t("Memory"), "", memory)), table);
    const button = h("button", { type: "button", class: "athanor-link", "aria-expanded": "false", "aria-controls": "athanor-chooser", onclick: toggle }, t("Which method should I use?"));

    function toggle() {
      panel.hidden = !panel.hidden;
      button.setAttribute("aria-expanded", String(!panel.hidden));
      if (panel.hidden || !form.known) return;
      athanor.fill(goal, Object.entries(form.known.purposes).map(([name, each]) => h("option", { value: name, selected: name === form.purpose }, t(each.title))));
      athanor.fill(memory, h("option", { value: "" }, t("Not limited")), form.known.memory.classes.map((size) => h("option", { value: size, selected: size === form.memory }, `${size} GB`)));
      pictures.value = form.pictures || "";
      ask();
    }

    async function ask() {
      const query = new URLSearchParams({ base: form.parts.base.value, purpose: goal.value, pictures: Number.parseInt(pictures.value, 10) || 0, memory: memory.value || 0 });
      try {
        draw((await athanor.api(`methods?${query}`)).methods);
      } catch (error) {
        athanor.fill(table, athanor.problems(error.problems || [String(error)]));
      }
    }

    function draw(rows) {
      const older = rows.filter((row) => row.older);
      athanor.fill(table, list(rows.filter((row) => !row.older)),
        older.length ? h("details", {}, h("summary", {}, t("Older methods")), list(older)) : "");
    }

    function list(rows) {
      const heads = [t("Method"), t("Comes out"), t("Time here"), t("Memory"), t("Pictures"), ""];
      return h("table", { class: "athanor-table" }, h("thead", {}, h("tr", {}, heads.map((head) => h("th", { scope: "col" }, head)))), h("tbody", {}, rows.map(one)));
    }

    function one(row) {
      const said = row.advised ? h("span", { class: "athanor-badge" }, t("Advised")) : "";
      const against = row.against.map(([text, numbers]) => h("small", { class: "athanor-against" }, t(text, ...numbers)));
      return h("tr", { class: row.against.length ? "athanor-out" : "" },
        h("th", { scope: "row" }, h("b", {}, t(row.title)), said, h("small", {}, t(row.about)), against),
        h("td", {}, t(row.output), row.bytes ? h("small", {}, athanor.size(row.bytes)) : ""),
        h("td", {}, row.seconds ? athanor.timeText(row) : t("seconds")), h("td", {}, row.gigabytes ? t("from {0} GB", row.gigabytes) : "–"),
        h("td", {}, t("{0} or more", row.pictures[1])),
        h("td", {}, h("button", { type: "button", disabled: row.name === form.method, onclick: () => { use(row.name); toggle(); } }, row.name === form.method ? t("Chosen") : t("Use"))));
    }
    return { button, panel };
  };
})();
