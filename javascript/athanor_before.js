// Before you start: what is known at once, what a look at pictures and model finds, the checks, and the two buttons.
"use strict";
(function () {
  const athanor = (window.athanor = window.athanor || {});
  const t = (...words) => athanor.t(...words);
  const PICTURE = /\.(a?png|jpe?g?|jfif|webp|bmp|gif|tiff?|avif)$/i; // findings name files of captions too
  const SIGNS = { stop: "✕", warn: "!", ok: "✓" };
  let h, side, form;

  athanor.beforePanel = function (theForm) {
    h = athanor.h;
    form = theForm;
    side = {
      facts: h("table", { class: "athanor-facts" }, h("tbody", {})), found: h("div", { class: "athanor-survey", "aria-live": "polite" }),
      check: h("button", { type: "button", onclick: () => athanor.busy(side.check, look) }, t("Look before starting")),
      start: h("button", { type: "button", class: "athanor-primary athanor-large", onclick: () => athanor.busy(side.start, start) }, t("Train")),
    };
    return h("aside", { class: "athanor-side", "aria-label": t("Before you start") }, h("h3", {}, t("Before you start")), side.facts, side.found,
      h("div", { class: "athanor-buttons" }, side.check, side.start), athanor.recipePlace(form));
  };

  function row(label, value, help) {
    return h("tr", {}, h("th", { scope: "row" }, label, help ? athanor.help(help) : ""), h("td", {}, value));
  }

  function pictureText() {
    if (!form.seen || form.seen.refused) return "–";
    return counted(form.pictures, form.asks("captions") ? form.seen.pictures.filter((card) => card.caption).length : null);
  }

  function counted(count, captioned) {
    if (!count || captioned === null) return String(count); // null: captions are not read
    if (captioned === count) return t("{0}, all with captions", count);
    return captioned ? t("{0}, {1} with captions", count, captioned) : t("{0}, without captions", count);
  }

  /** What the form alone says: always the same rows, so that nothing moves. */
  athanor.beforeFacts = function () {
    if (!form.made) return;
    const found = form.found, facts = found && found.facts, pace = form.made.paces[form.pace];
    const own = "steps" in form.changed || "batch_size" in form.changed || "gradient_accumulation" in form.changed;
    const steps = facts ? facts.steps : own ? form.changed.steps || form.recipe.steps : pace.steps;
    const time = facts ? { seconds: found.seconds, measured: found.seconds_from } : own ? null : pace;
    const memory = facts && facts.memory;
    const about = facts && !facts.steps_are_exact;
    athanor.fill(side.facts.firstChild,
      row(t("Pictures"), facts ? folderLines(facts) : pictureText()),
      form.asks("pace") && row(t("Steps"), steps ? (about ? t("about {0}", steps) : String(steps)) : "–", t("One step shows the model a few pictures and changes what is learned a little.")),
      row(t("Time"), !form.asks("pace") ? t("short: every picture is looked at once") : time ? athanor.timeText(time) : t("found by looking")),
      row(t("Memory"), memory ? memoryText(memory) : t("found by looking")),
      facts && facts.sharing ? row(t("Shared"), athanor.said(facts.sharing.reason), t("How training and drawing share the graphics card.")) : "",
      row(t("Trained on"), (facts ? facts.device : form.known.device) === "cpu" ? t("the processor (slow)") : t("the graphics card")));
  };

  const memoryText = (memory) => memory.free_bytes === null ? athanor.size(memory.peak_bytes) : t("{0} of {1} free", athanor.size(memory.peak_bytes), athanor.size(memory.free_bytes));

  /** A line for each folder, and one for what is held out. */
  function folderLines(facts) {
    const lines = facts.folders.map((folder, index) => counted(folder.pictures, folder.captioned) + (index ? ` · ${t(folder.purpose)}` : ""));
    if (facts.held_out) lines.splice(1, 0, t("{0} of them held out for measuring", facts.held_out)); // of the first folder's
    return lines.map((line) => h("div", {}, line));
  }

  /** An answer was changed: what was found belongs to another job. */
  athanor.beforeForget = function () {
    form.found = null;
    if (!side) return;
    for (const field of form.parts.panel.querySelectorAll(".athanor-wrong")) field.classList.remove("athanor-wrong");
    athanor.fill(side.found, h("p", { class: "athanor-quiet" }, t("Before the first step, pictures and model are looked at, and what would spoil the result is told here.")));
    if (form.known) athanor.beforeFacts();
  };

  athanor.refused = function (error) {
    if (side) athanor.fill(side.found, athanor.problems((error.problems || [String(error)]).map(titled)));
  };

  /** A sentence about an option begins with the option's name: on the form its field's title stands there, and the field
   * is marked (those under Expert are opened to) until an answer is changed. */
  function titled(sentence) {
    const said = athanor.said(sentence), name = /^[a-z_]+(?=[:：])/.exec(said);
    const field = name && fieldOf(name[0]);
    if (!field) return said;
    field.classList.add("athanor-wrong");
    for (let place = field.parentElement; place !== form.parts.panel; place = place.parentElement) if (place.tagName === "DETAILS") place.open = true;
    const title = field.querySelector("label").textContent;
    return title.slice(0, 1).toUpperCase() + title.slice(1) + said.slice(name[0].length);
  }

  function fieldOf(name) {
    const own = form.parts[name] instanceof Element && form.parts[name].closest(".athanor-field");
    return own || [...form.parts.expert.querySelectorAll(".athanor-field")].find((each) => each.dataset.words.startsWith(`${name} `));
  }

  /** Asks the trainers what they think of the job; true where nothing holds it back. */
  async function look() {
    await form.settled();
    athanor.fill(side.found, h("p", { class: "athanor-quiet athanor-looking" }, t("Looking at the pictures and the model …")));
    const job = form.job(), asked = JSON.stringify(job);
    try {
      const found = await athanor.api("check", { job });
      if (asked !== JSON.stringify(form.job())) return false; // the answers were changed meanwhile
      form.found = { ...found, asked };
      drawFound();
      return !held().length;
    } catch (error) {
      athanor.refused(error);
      return false;
    }
  }

  const findings = () => form.found.facts.checks || [];
  const held = () => findings().filter((each) => each.severity === "stop" && !form.overridden.has(each.id));

  function drawFound() {
    const facts = form.found.facts, every = findings();
    const skipped = facts.folders.flatMap((folder) => folder.skipped.map((each) => `${each.file}: ${each.reason}`));
    const fine = every.filter((each) => each.severity === "ok");
    const said = every.some((each) => each.id === "captions" && each.severity !== "ok"); // the notes would say it again
    athanor.beforeFacts();
    athanor.fill(side.found,
      facts.memory.fits === false ? athanor.problems([t("This may not fit into the memory. Choose a lower resolution or batch size.")]) : "",
      h("ul", { class: "athanor-checks" }, every.filter((each) => each.severity !== "ok").map(finding)),
      fine.length ? h("details", { class: "athanor-fine" }, h("summary", {}, t("{0} checks found nothing", fine.length)), h("ul", { class: "athanor-checks" }, fine.map(finding))) : "",
      athanor.problems([...skipped.slice(0, 6), ...facts.folders.flatMap((folder) => (said ? [] : folder.notes))], "note"), ready());
    side.ready = side.found.querySelector(".athanor-ready");
  }

  function ready() {
    const waiting = held().length;
    return h("p", { class: `athanor-ready ${waiting ? "athanor-held" : "athanor-good"}`, role: "status" },
      waiting ? t("{0} red finding(s) hold it back: mend them, or tick what you want to risk.", waiting) : t("Ready to train."));
  }

  function finding(each) {
    const tick = each.severity === "stop" ? h("label", { class: "athanor-check" }, h("input", { type: "checkbox", "data-check": each.id, checked: form.overridden.has(each.id),
      onchange: (event) => {
        const risked = event.currentTarget.checked;
        form.overridden[risked ? "add" : "delete"](each.id);
        for (const box of side.found.querySelectorAll(`[data-check="${each.id}"]`)) box.checked = risked; // one check may find several things
        form.found.asked = JSON.stringify(form.job());
        const now = ready();
        side.ready.replaceWith(now);
        side.ready = now;
      } }), " ", t("Train all the same")) : "";
    return h("li", { class: `athanor-finding athanor-${each.severity}` }, h("span", { class: "athanor-sign", "aria-label": { stop: t("red"), warn: t("yellow"), ok: t("fine") }[each.severity], role: "img" }, SIGNS[each.severity]),
      h("div", {}, h("p", {}, athanor.said(each.text)), each.what_to_do && each.severity !== "ok" ? h("p", { class: "athanor-quiet" }, athanor.said(each.what_to_do)) : "", pictures(each), drawing(each), tick));
  }

  /** What the base draws for a word that it knows already: shown on demand, for the base that is loaded. */
  function drawing(each) {
    const base = form.bases.find((one) => one.path === form.parts.base.value), word = form.word();
    if (each.id !== "trigger" || each.severity !== "warn" || !word || !form.canDraw || !base || !base.loaded) return "";
    const place = h("p", { class: "athanor-drawn" }), button = h("button", { type: "button", onclick: () => athanor.busy(button, async () => {
      place.textContent = t("The WebUI is drawing …");
      try {
        const seeds = [42, 43], made = [];
        for (const seed of seeds) made.push((await athanor.api("bases/draw", { prompt: word, seed })).picture);
        athanor.fill(place, made.map((picture) => h("img", { src: picture, alt: t("“{0}”, drawn by the base", word) })));
      } catch (error) {
        athanor.fill(place);
        throw error;
      }
    }) }, t("Draw “{0}” with the base", word));
    return h("div", {}, button, place);
  }

  function pictures(each) {
    const folder = form.parts.data.value.trim(), some = each.pictures.filter((file) => PICTURE.test(file)), shown = some.slice(0, 6);
    if (!shown.length || each.severity === "ok") return "";
    return h("p", { class: "athanor-small-pictures" }, shown.map((file) => h("img", { src: athanor.url(`data/thumbnail?${new URLSearchParams({ folder, file })}`),
      alt: file, title: file, loading: "lazy", onerror: (event) => event.currentTarget.remove() })), some.length > shown.length ? h("small", {}, t("and {0} more", some.length - shown.length)) : "");
  }

  async function start() {
    await form.settled();
    const known = form.found && form.found.asked === JSON.stringify(form.job());
    if (known ? held().length : !(await look())) {
      const first = side.found.querySelector("input, [role=alert]");
      if (first && first.focus) first.focus();
      return;
    }
    try {
      const made = await athanor.api("jobs", { job: form.job(), key: form.key });
      form.key = athanor.newKey();
      athanor.openRun(made.id);
    } catch (error) {
      athanor.refused(error);
    }
  }
})();
