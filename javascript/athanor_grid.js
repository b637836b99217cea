// A grid of epoch by strength, drawn by the host: what it shall show, its pictures as they come, one click to use one.
"use strict";
(function () {
  const athanor = (window.athanor = window.athanor || {});
  const t = (...words) => athanor.t(...words);
  const WEIGHTS = "0.5, 0.75, 1";
  let h, place, entry = null, grid = null;

  athanor.gridPanel = function (element) {
    h = athanor.h;
    place = element;
  };

  athanor.openGrid = async function (button, chosen) {
    await athanor.busy(button, async () => {
      const query = new URLSearchParams(chosen.run ? { run: chosen.run } : { id: chosen.id });
      const about = await athanor.api(`library/grid/about?${query}`);
      entry = chosen;
      grid = null;
      drawForm(about);
      place.scrollIntoView({ behavior: "smooth", block: "start" });
    });
  };

  /** A number, null for nothing; what is no number stays a text, for the server to refuse. */
  const number = (text) => (text === "" ? null : Number.isFinite(Number(text)) ? Number(text) : text);

  const close = () => { entry = grid = null; athanor.fill(place); };

  // ---- what it shall show

  function drawForm(about) {
    const prompts = h("textarea", { rows: Math.max(2, about.prompts.length), value: about.prompts.join("\n"), "aria-label": t("Prompts, one on each line") });
    const weights = h("input", { type: "text", value: WEIGHTS, "aria-label": t("Strengths") });
    const steps = h("input", { type: "text", inputmode: "numeric", value: about.steps });
    const files = about.files.map((file) => h("input", { type: "checkbox", value: file, checked: true }));
    const count = h("p", { class: "athanor-quiet", "aria-live": "polite" });
    const wish = () => ({ prompts: prompts.value.split("\n").map((each) => each.trim()).filter(Boolean),
      weights: weights.value.split(/[,;\s]+/).filter(Boolean).map(number), steps: number(steps.value.trim()), files: files.filter((each) => each.checked).map((each) => each.value) });
    const tell = () => {
      const { prompts: lines, weights: numbers, files: chosen } = wish();
      count.textContent = t("{0} pictures, with fixed seeds", lines.length * (1 + numbers.length * chosen.length));
    };
    const form = h("section", { class: "athanor-box athanor-gridbox", "aria-label": t("Grid"), oninput: tell },
      h("h3", {}, t("“{0}”: files by strength", about.title)),
      h("p", { class: "athanor-quiet" }, t("The WebUI draws each prompt without it, then with each file at each strength.")),
      h("div", { class: "athanor-pair" },
        h("label", {}, t("Prompts, one on each line"), prompts),
        h("div", {}, h("label", {}, t("Strengths"), weights), h("label", {}, t("Sampling steps"), steps),
          about.files.length > 1 ? h("div", { class: "athanor-checks", role: "group", "aria-label": t("Saved at step") }, h("span", {}, t("Saved at step")),
            files.map((box) => h("label", { class: "athanor-check" }, box, box.value))) : "")),
      count, h("div", { class: "athanor-buttons" },
        h("button", { type: "button", class: "athanor-primary", onclick: (event) => begin(event.currentTarget, wish()) }, t("Draw the grid")),
        h("button", { type: "button", onclick: close }, t("Close"))));
    athanor.fill(place, form);
    tell();
  }

  async function begin(button, wish) {
    await athanor.busy(button, async () => {
      grid = await athanor.api("library/grid", { ...wish, run: entry.run, id: entry.run ? "" : entry.id });
      drawGrid();
      follow(grid.id);
    });
  }

  // ---- its pictures

  async function follow(id) {
    while (grid && grid.id === id && grid.drawing) {
      await new Promise((resolve) => setTimeout(resolve, 1000));
      if (!athanor.isVisible()) continue;
      try {
        const now = await athanor.api(`library/grid?${new URLSearchParams({ name: id })}`);
        if (grid && grid.id === id) { grid = now; fillGrid(); }
      } catch (error) {
        athanor.say(...(error.problems || [String(error)]));
      }
    }
  }

  let shown;
  function drawGrid() {
    const columns = grid.files.flatMap((file, number) => grid.weights.map((weight) => ({ number, file, weight })));
    shown = { cells: new Map(), status: h("p", { class: "athanor-status", role: "status" }), bar: h("i", {}), said: h("div"), columns,
      cancel: h("button", { type: "button", onclick: (event) => athanor.busy(event.currentTarget, () => athanor.api("library/grid/cancel", { name: grid.id })) }, t("Cancel")) };
    const several = grid.files.length > 1;
    const heads = [h("tr", {}, h("td", { rowspan: 2 }), h("th", { scope: "col", rowspan: 2 }, t("without")),
      grid.files.map((file) => h("th", { scope: "colgroup", colspan: grid.weights.length }, several ? t("step {0}", file) : file))),
      h("tr", {}, columns.map((column) => h("th", { scope: "col" }, String(column.weight))))];
    const lines = grid.prompts.map((prompt, row) => h("tr", {}, h("th", { scope: "row" }, athanor.asIs(prompt)), cell(row, null, 0),
      columns.map((column) => cell(row, column.number, column.weight))));
    athanor.fill(place, h("section", { class: "athanor-box athanor-gridbox", "aria-label": t("Grid") }, h("h3", {}, t("“{0}”: files by strength", grid.title)),
      shown.status, h("div", { class: "athanor-bar" }, shown.bar), shown.said,
      h("div", { class: "athanor-wide", tabindex: 0, role: "group", "aria-label": t("Grid") }, h("table", { class: "athanor-grid-table" }, h("thead", {}, heads), h("tbody", {}, lines))),
      h("p", { class: "athanor-quiet" }, t("A click on a picture puts that file, at that strength, into the prompt.")),
      h("div", { class: "athanor-buttons" }, shown.cancel, h("button", { type: "button", onclick: close }, t("Close")))));
    fillGrid();
  }

  function cell(row, file, weight) {
    const element = h("td", {}, h("span", { class: "athanor-empty" }));
    shown.cells.set(`${row} ${file} ${weight}`, element);
    return element;
  }

  function fillGrid() {
    for (const each of grid.cells) {
      const element = shown.cells.get(`${each.prompt} ${each.file} ${each.weight}`);
      if (!element || element.querySelector("img")) continue;
      const address = athanor.url(`library/grid/picture?${new URLSearchParams({ name: grid.id, cell: each.cell })}`);
      const alt = each.file === null ? t("{0}, without it", grid.prompts[each.prompt]) : t("{0}, {1} at {2}", grid.prompts[each.prompt], grid.files[each.file], each.weight);
      const image = h("img", { src: address, alt });
      athanor.fill(element, each.file === null ? image : h("button", { type: "button", title: alt, onclick: (event) => use(event.currentTarget, each) }, image));
    }
    const left = grid.done ? (grid.seconds / grid.done) * (grid.total - grid.done) : null;
    shown.status.textContent = grid.drawing ? [t("{0} of {1} drawn", grid.done, grid.total), left ? t("{0} left", athanor.duration(left)) : ""].filter(Boolean).join(" · ")
      : grid.done < grid.total ? t("Ended after {0} of {1}.", grid.done, grid.total) : t("{0} pictures, with fixed seeds", grid.total);
    shown.bar.style.width = `${((100 * grid.done) / grid.total).toFixed(1)}%`;
    shown.cancel.hidden = !grid.drawing;
    athanor.fill(shown.said, grid.problem ? athanor.problems([grid.problem]) : "", athanor.problems(grid.reports, "note"));
  }

  async function use(button, each) {
    const weighted = (tag) => tag.replace(/:1>$/, `:${each.weight}>`);
    await athanor.busy(button, async () => {
      if (!entry.run) return athanor.useInPrompt(entry.trigger, weighted(entry.tag));
      const run = await athanor.api(`jobs/${encodeURIComponent(entry.run)}`);
      const output = run.outputs.find((one) => String(one.step) === grid.files[each.file]);
      const made = output && await athanor.publish(run, output.file);
      if (made) await athanor.useInPrompt(made.trigger, weighted(made.tag));
    });
  }
})();
