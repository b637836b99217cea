// Train: three questions, the base model, and everything else from the schema under Expert. What is known before the start
// is beside it (athanor_before.js), methods are chosen between in athanor_methods.js, and forms are kept in athanor_keeping.js.
"use strict";
(function () {
  const athanor = (window.athanor = window.athanor || {});
  athanor.screens = athanor.screens || {};
  const t = (...words) => athanor.t(...words);
  let h, parts;
  const ICONS = {
    person: "M12 12a4 4 0 1 0 0-8 4 4 0 0 0 0 8Zm-7 8c0-3.9 3.1-6 7-6s7 2.1 7 6",
    "anime-character": "M12 3l2.3 5.7L20 9.3l-4.4 3.9L17 19l-5-3.2L7 19l1.4-5.8L4 9.3l5.7-.6L12 3Z",
    style: "M4 20c3 0 4-1.500 4-3.500A2.500 2.500 0 0 1 13 16.500C13 19 9 20 4 20ZM11 13l7.500-8.500a1.400 1.400 0 0 1 2 2L12.500 14",
    object: "M12 3l8 4.500v9L12 21l-8-4.500v-9L12 3Zm0 9l8-4.500M12 12v9M12 12L4 7.500",
  };
  const FAMILIES = { sd1: "Stable Diffusion 1", sd2: "Stable Diffusion 2", sdxl: "SDXL" };
  const LONGEST_NAME = 50; // of a suggested one
  const ASKED = ["name", "trigger", "base", "data", "init_from"]; // questions of their own, above
  const form = (athanor.form = { purpose: "object", pace: "balanced", method: "lora", preset: "", memory: null, pictures: null,
    recipe: {}, changed: {}, schema: [], overridden: new Set(), own: [] });

  // ---- the questions

  const labelled = (...words) => athanor.labelled(...words);

  function question(number, title, help, ...content) {
    const id = `athanor-question-${number || title}`.replace(/\W+/g, "-");
    return h("section", { class: "athanor-question", "aria-labelledby": id },
      h("h3", { id }, number ? h("span", { class: "athanor-ordinal", "aria-hidden": "true" }, number) : "", title, help ? athanor.help(help) : ""), content);
  }

  function choices(name, label, entries, chosen, pick) {
    return h("div", { class: `athanor-choices athanor-${name}`, role: "radiogroup", "aria-label": label },
      entries.map(({ value, title, hint, icon }) => h("label", { class: "athanor-choice" },
        h("input", { type: "radio", name: `athanor-${name}`, value, checked: value === chosen, onchange: () => pick(value) }),
        icon ? h("svg", { viewBox: "0 0 24 24", class: "athanor-icon", "aria-hidden": "true" }, h("path", { d: icon })) : "",
        h("span", {}, h("b", {}, title), h("small", { "data-of": value }, hint || "")))));
  }

  function build(panel) {
    h = athanor.h;
    parts = form.parts = { panel };
    parts.base = h("select", { onchange: () => { parts.base.dataset.own = "1"; describeBase(); compose(); } });
    parts.facts = h("p", { class: "athanor-facts-line" });
    parts.data = h("input", { type: "text", placeholder: t("Full path of a folder"), list: "athanor-folders", onchange: lookAtPictures });
    parts.folders = h("datalist", { id: "athanor-folders" });
    parts.trigger = h("input", { type: "text", autocomplete: "off", placeholder: t("for example: sks basketball"), oninput: suggestName });
    parts.name = h("input", { type: "text", autocomplete: "off", oninput: () => { parts.name.dataset.own = "1"; named(); } });
    parts.purposes = h("div", { class: "athanor-hold-purposes" });
    parts.paces = h("div", { class: "athanor-hold-paces" });
    parts.seen = h("div", { class: "athanor-seen", "aria-live": "polite" });
    parts.init_from = h("select", { onchange: forget });
    parts.memory = h("select", { onchange: () => { form.memory = Number(parts.memory.value) || null; compose(); } });
    parts.changes = h("div", { "aria-live": "polite" });
    parts.methods = h("select", { onchange: () => chooseMethod(parts.methods.value) });
    parts.recipe = h("p", { class: "athanor-recipe" });
    parts.expert = h("div", { class: "athanor-options" });
    athanor.fill(panel, h("div", { class: "athanor-columns athanor-training" },
      h("div", { class: "athanor-form" }, questions()), athanor.beforePanel(form)), expert());
    load().catch((error) => athanor.refused(error));
    new IntersectionObserver((seen) => { if (seen.some((each) => each.isIntersecting)) lookForBases(); }).observe(panel);
  }

  function questions() {
    const chooser = athanor.methodChooser(form, chooseMethod);
    parts.wordTitle = h("span", {});
    const fields = parts.asked = { // what only some methods ask
      trigger: labelled(t("Trigger word"), "", parts.trigger, athanor.ribbon(parts.trigger)),
      pace: question("3", t("How long may it take?"), t("The longer, the more often each picture is shown: more is learned, and more of what the model knew is forgotten."), parts.paces),
      memory: labelled(t("Graphics memory"), t("Splits the work so that it fits. The pictures of one step stay together, so the result is the same unless it says otherwise below."), parts.memory),
      init_from: labelled(t("Start from"), t("An existing file of the same kind, to go on teaching it."), parts.init_from),
    };
    return [
      question("1", t("What do you want to teach?"), "", parts.purposes,
        labelled(t("Pictures"), t("A folder with pictures of it; a text file of the same name beside a picture is its caption (what can be seen in it)."),
          parts.data, [parts.folders, athanor.picturePlace(form, lookAtPictures), parts.seen])),
      question("2", parts.wordTitle, "",
        h("div", { class: "athanor-pair" }, fields.trigger, labelled(t("Name of the result"), t("The file's name, and what is written between < > in a prompt."), parts.name))),
      fields.pace,
      question("", t("On which model, and how?"), "",
        labelled(t("Base model"), t("The model that is taught. What is trained works with it and with its relatives."), parts.base, parts.facts),
        h("div", { class: "athanor-pair athanor-three" },
          labelled(t("Method"), t("What kind of file comes out, and how much of the model learns."), parts.methods, chooser.button),
          fields.memory, fields.init_from),
        parts.changes, chooser.panel),
    ];
  }

  /** Whether the chosen method has a question (`asks` of a method says so); all have until they are known. */
  form.asks = (question) => !form.known || form.known.methods[form.method].asks.includes(question);

  /** The word that calls up what is learned: the trigger, or the name where a method's result is called up by that. */
  form.word = () => (form.asks("trigger") ? parts.trigger : parts.name).value.trim();

  function fitQuestions() {
    for (const [question, field] of Object.entries(parts.asked)) field.hidden = !form.asks(question);
    athanor.fill(parts.wordTitle, form.asks("trigger")
      ? [t("Which word shall stand for it?"), " ", athanor.help(t("The trigger word: written in a prompt, it calls up what was learned. Best is one that the model does not know yet."))]
      : [t("What shall it be called?"), " ", athanor.help(t("What this method makes has no trigger word: its name, written in a prompt, calls it up. Best is one that the model does not know yet."))]);
  }

  function suggestName() {
    if (!parts.name.dataset.own || !parts.name.value) {
      const words = (form.asks("trigger") && parts.trigger.value.trim()) || parts.data.value.split(/[\\/]/).filter(Boolean).pop() || "";
      parts.name.value = words.replace(/[<>:"/\\|?*]+/g, " ").trim().replace(/\s+/g, "-").slice(0, LONGEST_NAME);
    }
    named();
  }

  function named() {
    forget();
    if (form.offered) form.offered(); // a caption for all follows the word
  }

  // ---- what there is

  async function load() {
    const [bases, recipes, me] = await Promise.all([athanor.api("bases"), athanor.api("recipes"), athanor.api("me")]);
    Object.assign(form, { known: recipes, own: recipes.own, memory: recipes.memory.own });
    takeBases(bases);
    athanor.fill(parts.folders, me.roots.map((root) => h("option", { value: root })));
    drawChoices();
    const entries = Object.entries(recipes.methods), option = ([name, each]) => h("option", { value: name }, t(each.title));
    const older = entries.filter((entry) => entry[1].older);
    athanor.fill(parts.methods, entries.filter((entry) => !entry[1].older).map(option), older.length ? h("optgroup", { label: t("Older methods") }, older.map(option)) : "");
    drawMemory();
    athanor.drawPresets(form);
    fitQuestions();
    describeBase();
    if (me.problem) athanor.say(me.problem);
    await Promise.all([compose(), startingPoints()]);
  }

  function takeBases(said) {
    const was = parts.base.value;
    Object.assign(form, { bases: said.bases, clipSkip: said.clip_skip, canDraw: said.can_draw });
    athanor.fill(parts.base, form.bases.map((base) => h("option", { value: base.path }, base.loaded ? t("{0} (loaded now)", base.title) : base.title)));
    if (parts.base.dataset.own && form.bases.some((base) => base.path === was)) parts.base.value = was;
    return parts.base.value !== was;
  }

  /** The WebUI may have loaded another model since, or found new ones: the form follows, unless a base was chosen on it. */
  async function lookForBases() {
    if (!form.bases) return;
    const said = await athanor.api("bases").catch(() => null);
    if (!said || JSON.stringify(said.bases) === JSON.stringify(form.bases)) return;
    const another = takeBases(said);
    describeBase();
    if (another) await compose();
  }

  function drawChoices() {
    const { purposes, paces } = form.known;
    athanor.fill(parts.purposes, choices("purpose", t("What do you want to teach?"),
      Object.entries(purposes).map(([value, each]) => ({ value, title: t(each.title), hint: t(each.hint), icon: ICONS[value] })),
      form.purpose, (value) => { form.purpose = value; form.preset = parts.preset.value = ""; compose(); drawSeen(); }));
    athanor.fill(parts.paces, choices("pace", t("How long may it take?"),
      Object.entries(paces).map(([value, each]) => ({ value, title: t(each.title), hint: t(each.hint) })),
      form.pace, (value) => { form.pace = value; compose(); }));
  }

  function drawMemory() {
    const { classes, own, bytes } = form.known.memory;
    const plain = bytes ? t("Not limited") : t("Trained on the processor");
    athanor.fill(parts.memory, h("option", { value: "" }, plain), classes.map((size) =>
      h("option", { value: size }, size === own ? t("{0} GB (this machine)", size) : `${size} GB`)));
    parts.memory.value = form.memory || "";
  }

  function describeBase() {
    const base = (form.bases || []).find((each) => each.path === parts.base.value);
    if (!base) return athanor.fill(parts.facts, t("There is no base model yet: put one into the WebUI's models folder."));
    if (!form.asks("base")) return athanor.fill(parts.facts, t("This method leaves the model alone: a CLIP model of its kind looks at the pictures (clip_model under Expert)."));
    const chip = (text, help) => h("span", { class: "athanor-fact" }, text, help ? athanor.help(help) : "");
    const predicts = { epsilon: t("predicts noise"), v: t("predicts velocity (v)") }[base.prediction] || t("prediction found before training");
    const skip = form.clipSkip && base.family === "sd1" ? t("clip skip {0} (the WebUI's)", form.clipSkip) : t("clip skip of its family");
    athanor.fill(parts.facts, chip(FAMILIES[base.family] || t("family found before training")),
      chip(predicts, t("Models are made to guess either the noise in a picture or its velocity; training has to know which.")),
      chip(base.vae ? t("autoencoder: {0}", base.vae) : t("its own autoencoder"), t("The part that turns pictures into the model's own small form and back (VAE).")),
      chip(skip, t("Which layer of the text encoder is read, counted from the end. It is kept in the file; another can be set under Expert.")));
  }

  async function startingPoints() {
    const can = form.asks("init_from"), was = parts.init_from.value;
    const files = can ? (await athanor.api(`starting-points?method=${form.method}`)).files : [];
    athanor.fill(parts.init_from, h("option", { value: "" }, t("From scratch")),
      files.map((file) => h("option", { value: file.path }, file.title)));
    if (files.some((file) => file.path === was)) parts.init_from.value = was;
  }

  /** Whoever needs the whole form waits until nothing is on its way. */
  form.settled = async function () {
    for (let seen = null; seen !== form.pending;) { seen = form.pending; await seen; }
  };

  function lookAtPictures() {
    parts.data.value = athanor.path(parts.data.value);
    form.pending = countPictures();
    return form.pending;
  }

  async function countPictures() {
    suggestName();
    form.seen = null;
    form.pictures = null;
    const folder = parts.data.value.trim();
    try {
      form.seen = folder ? await athanor.api(`data?${new URLSearchParams({ folder })}`) : null;
      form.pictures = form.seen ? form.seen.pictures.length + (form.seen.left_out || 0) : null;
    } catch (error) {
      form.seen = { refused: error.problems };
    }
    drawSeen();
    await composeNow();
  }

  const drawSeen = () => athanor.drawSeen(form, lookAtPictures);

  // ---- the recipe

  /** Another method, with a shipped recipe of it or as the purpose says. */
  async function chooseMethod(method, preset = "") {
    form.method = parts.methods.value = method;
    form.changed = {};
    form.preset = parts.preset.value = preset;
    fitQuestions();
    describeBase();
    drawSeen();
    await Promise.all([compose(), startingPoints().catch((error) => athanor.refused(error))]);
  }

  function compose() {
    form.pending = composeNow();
    return form.pending;
  }

  async function composeNow() {
    forget();
    if (!parts.base.value) return;
    const wanted = { base: parts.base.value, purpose: form.purpose, pace: form.pace, method: form.method, preset: form.preset, memory: form.memory, pictures: form.pictures };
    const turn = (form.turn = (form.turn || 0) + 1);
    try {
      const [made, schema] = await Promise.all([athanor.api("recipes/compose", wanted), athanor.api(`schema?method=${form.method}`)]);
      if (turn !== form.turn) return; // another answer came meanwhile
      Object.assign(form, { recipe: made.values, made, schema: schema.options });
      parts.methods.value = form.method;
      athanor.fill(parts.recipe, made.preset ? t("Recipe: {0}.", made.preset) : t("Recipe: the method's own values."), " ", h("span", {}, athanor.said(made.about)));
      drawTimes();
      athanor.fill(parts.changes, Object.keys(made.changes).length ? [h("p", { class: "athanor-quiet" }, t("To fit into {0} GB, this changes the result:", form.memory)),
        athanor.problems(Object.values(made.changes).map((sentence) => t(sentence)), "note")] : "");
      drawOptions();
      athanor.beforeFacts(form);
    } catch (error) {
      athanor.refused(error);
    }
  }

  /** "about 12 min" under each pace; the hint stays, so that nothing moves. */
  function drawTimes() {
    for (const [pace, time] of Object.entries(form.made.paces)) {
      const place = parts.paces.querySelector(`small[data-of="${pace}"]`), hint = t(form.known.paces[pace].hint);
      athanor.fill(place, hint, h("span", { class: "athanor-time" }, athanor.timeText(time)));
    }
  }

  /** A duration, called an estimate until steps like these were measured on this machine. */
  athanor.timeText = function (time) {
    if (!time || !time.seconds) return !form.asks("pace") ? t("seconds") : t("time not known");
    const round = time.seconds < 90 ? 10 : 60; // an estimate in single seconds would be a lie
    return time.measured ? athanor.duration(time.seconds) : t("about {0} (estimate)", athanor.duration(Math.ceil(time.seconds / round) * round));
  };

  form.job = function () {
    const values = { ...form.recipe, ...form.changed, method: form.method };
    for (const name of ASKED) {
      if (name in parts.asked && !form.asks(name)) delete values[name];
      else if (parts[name].value.trim()) values[name] = parts[name].value.trim();
    }
    const known = new Set(["method", ...form.schema.map((option) => option.name)]);
    if (form.overridden.size) values.override_checks = [...form.overridden];
    return Object.fromEntries(Object.entries(values).filter(([name]) => known.has(name)));
  };

  function forget() {
    form.key = athanor.newKey();
    athanor.beforeForget(form);
  }

  // ---- expert

  function expert() {
    parts.search = h("input", { type: "search", placeholder: t("Find an option, for example: learning"), oninput: filter });
    parts.changedOnly = h("input", { type: "checkbox", onchange: filter });
    return h("details", { class: "athanor-expert" }, h("summary", {}, t("Expert: every option")), parts.recipe,
      athanor.presetRow(form, { take, compose: () => compose(), chooseMethod }), h("div", { class: "athanor-row athanor-find" },
        labelled(t("Search"), "", parts.search), h("label", { class: "athanor-check" }, parts.changedOnly, " ", t("only what I changed"))), parts.expert);
  }

  function drawOptions() {
    athanor.drawOptions(parts.expert, form, [...ASKED, "override_checks"], () => { forget(); athanor.beforeFacts(form); });
    filter();
  }

  const filter = () => athanor.filterOptions(parts.expert, parts.search.value, parts.changedOnly.checked);

  /** Fills the form with a job's options; `answers` are what was asked before the recipe was made. */
  async function take(values, answers) {
    for (const name of ["purpose", "pace", "memory"]) if (answers && answers[name]) form[name] = answers[name];
    form.method = values.method || "lora";
    form.preset = parts.preset.value = "";
    form.overridden.clear();
    drawChoices();
    parts.memory.value = form.memory || "";
    await startingPoints().catch(() => {});
    for (const name of ASKED) if (values[name] && (name !== "base" || form.bases.some((base) => base.path === values.base))) parts[name].value = values[name];
    for (const name of ["trigger", "init_from"]) if (form.asks(name) && name in values && !values[name]) parts[name].value = ""; // it had none
    if (values.name) parts.name.dataset.own = "1";
    if (parts.base.value === values.base) parts.base.dataset.own = "1";
    form.changed = {};
    fitQuestions();
    describeBase();
    await (values.data ? lookAtPictures() : compose());
    for (const option of form.schema) {
      const has = option.name in values && !ASKED.includes(option.name) && option.name !== "override_checks";
      if (has && athanor.differs(option, values[option.name], form)) form.changed[option.name] = values[option.name];
    }
    drawOptions();
    athanor.beforeFacts(form);
    parts.trigger.dispatchEvent(new Event("athanor-set"));
    athanor.show("train");
  }

  athanor.fillForm = async function (values, answers) {
    await take(values, answers);
    const lines = [t("The form holds the options of that run; change what you like, then train.")];
    for (const [name, title] of [["base", t("Base model")], ["init_from", t("Start from")]]) {
      if (values[name] && parts[name].value !== values[name]) lines.push(t("{0}: {1} is not among the files here, so it was not taken over.", title, values[name]));
    }
    athanor.say(...lines);
  };
  athanor.useFolder = function (folder, trigger) {
    parts.data.value = folder;
    if (trigger && !parts.trigger.value.trim()) parts.trigger.value = trigger;
    athanor.show("train");
    return lookAtPictures();
  };
  /** The options that say how pictures are cut, as far as the form says them, for Data to show. */
  athanor.trainCutting = function () {
    const said = { ...form.recipe, ...form.changed }, cutting = {}, resolution = form.schema.find((each) => each.name === "resolution");
    for (const option of form.schema.filter((each) => resolution && each.group === resolution.group)) { // the server takes what it needs of them
      const value = said[option.name] ?? "", number = Number(value);
      const fits = option.kind === "int" && value !== "" && Number.isInteger(number) && number >= option.minimum && number <= option.maximum;
      if (fits || (option.kind === "bool" && value !== "")) cutting[option.name] = value; // what is wrong is told beside the field
    }
    return cutting;
  };
  athanor.screens.train = { build };
})();
