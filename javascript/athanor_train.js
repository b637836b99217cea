// Train: three questions and a recipe; everything else, from the schema, under Expert.
"use strict";
(function () {
  const athanor = (window.athanor = window.athanor || {});
  athanor.screens = athanor.screens || {};
  let h, parts;
  const METHODS = {
    lora: "LoRA: a small file beside the model",
    textual_inversion: "Textual Inversion: a new word, smallest file",
    dreambooth: "DreamBooth: a whole model of its own, largest file",
    hypernetwork: "Hypernetwork (older method)",
    aesthetic_gradient: "Aesthetic Gradient (older method)",
  };
  const HINTS = {
    person: "A face and body, from 10 to 40 photographs.",
    "anime-character": "A character that is drawn the same way in every picture.",
    style: "How pictures look, whatever they show.",
    object: "One thing: a toy, a logo, a piece of furniture.",
  };
  const PACES = { quick: "Quick, to try it", balanced: "Balanced", thorough: "Thorough" };
  const ASKED = ["name", "trigger", "base", "data"]; // questions of their own, above
  const state = { purpose: "object", pace: "balanced", method: "lora", preset: "", recipe: {}, changed: {}, schema: [] };

  // ---- the questions

  function question(title, help, ...content) {
    return h("div", { class: "athanor-question" }, h("h3", {}, title, help ? athanor.help(help) : ""), content);
  }

  function choices(name, labels, chosen, pick, hints) {
    return h("div", { class: "athanor-choices", role: "radiogroup" },
      Object.entries(labels).map(([value, label]) => h("label", { class: "athanor-choice" },
        h("input", { type: "radio", name: `athanor-${name}`, value, checked: value === chosen, onchange: () => pick(value) }),
        h("span", {}, h("b", {}, label), hints ? h("small", {}, hints[value]) : ""))));
  }

  const labelled = (...words) => athanor.labelled(...words);

  function build(panel) {
    h = athanor.h;
    parts = { panel };
    parts.base = h("select", { onchange: compose });
    parts.data = h("input", { type: "text", placeholder: "Full path of a folder", list: "athanor-folders",
      onchange: () => { suggestName(); forget(); } });
    parts.folders = h("datalist", { id: "athanor-folders" });
    parts.trigger = h("input", { type: "text", autocomplete: "off", placeholder: "for example: sks basketball",
      oninput: suggestName });
    parts.name = h("input", { type: "text", autocomplete: "off", oninput: () => { parts.name.dataset.own = "1"; forget(); } });
    parts.drop = dropPlace();
    parts.purposes = h("div");
    parts.survey = h("div", { class: "athanor-survey", "aria-live": "polite" });
    parts.start = h("button", { type: "button", class: "athanor-primary", onclick: submit }, "Train");
    parts.check = h("button", { type: "button", onclick: check }, "Look before starting");
    parts.recipe = h("p", { class: "athanor-recipe" });
    parts.expert = h("div", { class: "athanor-options" });
    athanor.fill(panel, h("div", { class: "athanor-columns" },
      h("div", { class: "athanor-form" }, questions(), expert()),
      h("div", { class: "athanor-side" }, h("h3", {}, "Before you start"), parts.survey,
        h("div", { class: "athanor-buttons" }, parts.check, parts.start))));
    forget();
    load().catch((error) => athanor.fill(parts.survey, athanor.problems(error.problems || [String(error)])));
  }

  function questions() {
    return [
      question("1 · What do you want to teach?", "", parts.purposes,
        labelled("Pictures", "A folder with pictures of it; a text file of the same name beside a picture is its caption (what can be seen in it).", parts.data, [parts.folders, parts.drop])),
      question("2 · Which word shall stand for it?", "The trigger word: written in a prompt, it calls up what was learned. Best is one that the model does not know yet.",
        h("div", { class: "athanor-pair" }, labelled("Trigger word", "", parts.trigger),
          labelled("Name of the result", "The file's name, and what is written between < > in a prompt.", parts.name))),
      question("3 · How long may it take?", "More steps learn more, and forget more of what the model knew.",
        choices("pace", PACES, state.pace, (value) => { state.pace = value; compose(); })),
      question("Base model", "The model that is taught. What is trained works with it and with its relatives.", parts.base),
    ];
  }

  function dropPlace() {
    const input = h("input", { type: "file", accept: "image/*", multiple: true, class: "athanor-file", "aria-label": "Choose pictures",
      onchange: () => upload([...input.files]) });
    const place = h("label", { class: "athanor-drop" }, input, h("span", {}, "or drop pictures here, or click to choose them"));
    place.addEventListener("dragover", (event) => { event.preventDefault(); place.classList.add("athanor-over"); });
    place.addEventListener("dragleave", () => place.classList.remove("athanor-over"));
    place.addEventListener("drop", (event) => {
      event.preventDefault();
      place.classList.remove("athanor-over");
      upload([...event.dataTransfer.files]);
    });
    return place;
  }

  async function upload(files) {
    const folder = parts.name.value.trim() || parts.trigger.value.trim() || "pictures";
    const said = parts.drop.querySelector("span");
    let done = 0, last = null;
    const refused = [];
    for (const file of files) {
      said.textContent = `Copying ${++done} of ${files.length} …`;
      const query = new URLSearchParams({ folder, name: file.name });
      try {
        last = await athanor.api(`data/upload?${query}`, file, true);
      } catch (error) {
        refused.push(...error.problems);
      }
    }
    said.textContent = last ? `${athanor.count(files.length - refused.length, "picture")} copied` : "or drop pictures here, or click to choose them";
    if (refused.length) athanor.say(...refused.slice(0, 4));
    if (last) { parts.data.value = last.folder; suggestName(); forget(); }
  }

  function suggestName() {
    forget();
    if (parts.name.dataset.own && parts.name.value) return;
    const words = parts.trigger.value.trim() || parts.data.value.split(/[\\/]/).filter(Boolean).pop() || "";
    parts.name.value = words.replace(/[<>:"/\\|?*]+/g, " ").trim().replace(/\s+/g, "-");
  }

  // ---- the recipe

  async function load() {
    const [bases, recipes, me] = await Promise.all([athanor.api("bases"), athanor.api("recipes"), athanor.api("me")]);
    athanor.fill(parts.base, bases.bases.map((base) => h("option", { value: base.path },
      base.title + (base.loaded ? " (loaded now)" : ""))));
    athanor.fill(parts.folders, me.roots.map((root) => h("option", { value: root })));
    athanor.fill(parts.purposes, choices("purpose", recipes.purposes, state.purpose,
      (value) => { state.purpose = value; state.preset = ""; compose(); }, HINTS));
    athanor.fill(parts.preset, h("option", { value: "" }, "As answered above"),
      recipes.presets.map((preset) => h("option", { value: preset.name, title: preset.about }, preset.name)));
    if (me.problem) athanor.say(me.problem);
    await compose();
  }

  async function compose() {
    forget();
    if (!parts.base.value) return;
    const wanted = { base: parts.base.value, purpose: state.purpose, pace: state.pace, method: state.method, preset: state.preset };
    try {
      const [made, schema] = await Promise.all([athanor.api("recipes/compose", wanted), athanor.api(`schema?method=${state.method}`)]);
      state.recipe = made.values;
      if (!parts.methods.options.length) {
        athanor.fill(parts.methods, schema.methods.map((method) => h("option", { value: method }, METHODS[method] || method)));
      }
      parts.methods.value = state.method;
      state.schema = schema.options;
      athanor.fill(parts.recipe, `Recipe: ${made.preset}. `, h("span", {}, made.about));
      drawOptions();
    } catch (error) {
      athanor.fill(parts.survey, athanor.problems(error.problems || [String(error)]));
    }
  }

  function job() {
    const values = { ...state.recipe, ...state.changed, method: state.method };
    for (const name of ASKED) if (parts[name].value.trim()) values[name] = parts[name].value.trim();
    const known = new Set(["method", ...state.schema.map((option) => option.name)]);
    const trigger = parts.trigger.value.trim();
    if (!("sample_prompts" in values) && trigger) values.sample_prompts = [trigger, `${trigger}, outdoors`];
    return Object.fromEntries(Object.entries(values).filter(([name]) => known.has(name)));
  }

  // ---- before the start

  function forget() {
    state.key = athanor.newKey();
    if (!parts.survey) return;
    athanor.fill(parts.survey, h("p", { class: "athanor-quiet" },
      "“Look before starting” counts pictures and captions, and says how much memory and time it will take."));
  }

  async function check() {
    athanor.fill(parts.survey, h("p", { class: "athanor-quiet" }, "Looking at the pictures and the model …"));
    await athanor.busy(parts.check, async () => {
      try {
        showSurvey(await athanor.api("check", { job: job() }));
      } catch (error) {
        athanor.fill(parts.survey, athanor.problems(error.problems || [String(error)]));
      }
    });
  }

  function row(label, value, help) {
    return h("tr", {}, h("th", { scope: "row" }, label, help ? athanor.help(help) : ""), h("td", {}, value));
  }

  function showSurvey(found) {
    const facts = found.facts, memory = facts.memory;
    const time = found.seconds ? `about ${athanor.duration(found.seconds)} (estimated from “${found.seconds_from}”)`
      : "not known yet: nothing like it was trained here so far";
    const free = memory.free_bytes ? ` of ${athanor.size(memory.free_bytes)} free` : "";
    const folders = facts.folders.map((folder) => row(
      `Pictures ${folder.purpose}`, `${folder.pictures}, ${folder.captioned} with captions` +
        (folder.skipped.length ? `, ${athanor.count(folder.skipped.length, "file")} skipped` : "")));
    const skipped = facts.folders.flatMap((folder) => folder.skipped.map((each) => `${each.file}: ${each.reason}`));
    const notes = facts.folders.flatMap((folder) => folder.notes);
    athanor.fill(parts.survey,
      h("table", {}, h("tbody", {},
        row("Model", `${facts.title}, ${facts.resolution} px`), folders,
        row("Steps", `${facts.steps_are_exact ? "" : "about "}${facts.steps}, showing ${facts.exposures} pictures`,
          "One step shows the model a few pictures and changes what is learned a little."),
        row("Time", time), row("Memory", `${athanor.size(memory.peak_bytes)}${free}`),
        facts.sharing ? row(athanor.t("Shared"), athanor.t(facts.sharing.reason)) : "",
        row("Trained on", facts.device === "cpu" ? "the processor (slow)" : "the graphics card"))),
      memory.fits ? "" : athanor.problems(["This may not fit into the memory. Choose a lower resolution or batch size."]),
      athanor.problems(skipped.slice(0, 6), "note"), athanor.problems(notes, "note"),
      memory.fits ? h("p", { class: "athanor-good" }, "Ready to train.") : "");
  }

  async function submit() {
    await athanor.busy(parts.start, async () => {
      try {
        const made = await athanor.api("jobs", { job: job(), key: state.key });
        state.key = athanor.newKey();
        athanor.openRun(made.id);
      } catch (error) {
        athanor.fill(parts.survey, athanor.problems(error.problems || [String(error)]));
      }
    });
  }

  // ---- expert

  function expert() {
    parts.methods = h("select", { onchange: () => { state.method = parts.methods.value; state.changed = {}; compose(); } });
    parts.preset = h("select", { onchange: () => { state.preset = parts.preset.value; compose(); } });
    parts.search = h("input", { type: "search", placeholder: "Find an option, for example: learning", oninput: filter });
    parts.changedOnly = h("input", { type: "checkbox", onchange: filter });
    return h("details", { class: "athanor-expert" }, h("summary", {}, "Expert: every option"), parts.recipe,
      h("div", { class: "athanor-pair athanor-three" },
        labelled("Method", "What kind of file comes out.", parts.methods),
        labelled("Recipe", "Values that go together; your own changes stay.", parts.preset),
        labelled("Search", "", parts.search)),
      h("label", { class: "athanor-check" }, parts.changedOnly, " only what I changed"), parts.expert);
  }

  function drawOptions() {
    athanor.drawOptions(parts.expert, state, ASKED, forget);
    filter();
  }

  const filter = () => athanor.filterOptions(parts.expert, parts.search.value, parts.changedOnly.checked);

  /** Fills the form from another run's options. */
  async function take(values) {
    state.method = values.method || "lora";
    for (const name of ASKED) if (values[name]) parts[name].value = values[name];
    parts.name.dataset.own = "1";
    state.changed = {};
    await compose();
    for (const option of state.schema) {
      const has = option.name in values && !ASKED.includes(option.name);
      if (has && athanor.differs(option, values[option.name], state)) state.changed[option.name] = values[option.name];
    }
    drawOptions();
    athanor.show("train");
    athanor.say("The form holds the options of that run; change what you like, then train.");
  }

  athanor.fillForm = take;
  athanor.useFolder = function (folder) { parts.data.value = folder; suggestName(); athanor.show("train"); };
  athanor.screens.train = { build };
})();
