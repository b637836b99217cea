// Keeping a form: presets of one's own, job files, the command line, and recipes that are dropped in.
"use strict";
(function () {
  const athanor = (window.athanor = window.athanor || {});
  const t = (...words) => athanor.t(...words);
  const OWN = "own:";

  /** The row with the recipe's list and its buttons; `act.take(values, answers)` fills the form. */
  athanor.presetRow = function (form, act) {
    const h = athanor.h, { parts } = form;
    parts.preset = h("select", { onchange: () => choose(form, act) });
    parts.saveAs = h("input", { type: "text", autocomplete: "off", placeholder: t("for example: my faces") });
    const save = h("button", { type: "button", onclick: () => athanor.busy(save, () => keep(form)) }, t("Save"));
    parts.forgetPreset = h("button", { type: "button", disabled: true, onclick: () => athanor.busy(parts.forgetPreset, () => drop(form)) }, t("Delete"));
    const download = h("button", { type: "button", onclick: () => athanor.busy(download, () => written(form).then((made) => offer(made.yaml, `${form.job().name || "job"}.yaml`))) }, t("Download job file"));
    const copy = h("button", { type: "button", onclick: () => athanor.busy(copy, () => written(form).then((made) => clip(made.command))) }, t("Copy as a command line"));
    return h("div", { class: "athanor-keeping" },
      h("div", { class: "athanor-row" }, athanor.labelled(t("Recipe"), t("Values that go together; your own changes stay."), parts.preset), parts.forgetPreset),
      h("div", { class: "athanor-row" }, athanor.labelled(t("Keep these options as"), t("A preset of your own, in the WebUI's data folder. Pictures, trigger word and name are not part of it."), parts.saveAs), save),
      h("div", { class: "athanor-buttons" }, download, copy));
  };

  athanor.drawPresets = function (form) {
    const h = athanor.h, { parts } = form;
    athanor.fill(parts.preset, h("option", { value: "" }, t("As answered above")),
      form.own.length ? h("optgroup", { label: t("Your own") }, form.own.map((name) => h("option", { value: OWN + name }, athanor.asIs(name)))) : "",
      h("optgroup", { label: t("Shipped") }, form.known.presets.map((preset) => h("option", { value: preset.name, title: athanor.said(preset.about) }, preset.name))));
    parts.forgetPreset.disabled = true;
  };

  async function choose(form, act) {
    const chosen = form.parts.preset.value, own = chosen.startsWith(OWN);
    form.parts.forgetPreset.disabled = !own;
    form.preset = own ? "" : chosen;
    const shipped = form.known.presets.find((preset) => preset.name === chosen);
    if (!own) return shipped && shipped.method !== form.method ? act.chooseMethod(shipped.method, chosen) : act.compose();
    try {
      const made = await athanor.api(`presets/own?${new URLSearchParams({ name: chosen.slice(OWN.length) })}`);
      await act.take(made.values, made.answers);
      form.parts.preset.value = chosen;
      form.parts.forgetPreset.disabled = false;
    } catch (error) {
      athanor.refused(error);
    }
  }

  async function keep(form) {
    const name = form.parts.saveAs.value.trim(), { purpose, pace, memory } = form;
    const taken = form.own.includes(name) && form.parts.preset.value !== OWN + name;
    if (taken && !(await athanor.ask(t("“{0}” is there already", name), t("It can be replaced; the old one goes to the trash folder of your presets."), [["yes", t("Replace it"), true]]))) return;
    form.own = (await athanor.api("presets/own", { name, job: form.job(), answers: { purpose, pace, memory } })).own;
    athanor.drawPresets(form);
    form.parts.preset.value = OWN + name;
    form.parts.forgetPreset.disabled = false;
    form.parts.saveAs.value = "";
    athanor.say(t("Kept as “{0}”.", name));
  }

  async function drop(form) {
    const name = form.parts.preset.value.slice(OWN.length);
    form.own = (await athanor.api("presets/own/delete", { name })).own;
    athanor.drawPresets(form);
    setTimeout(() => { form.parts.forgetPreset.disabled = true; });
    athanor.say(t("“{0}” lies in the trash folder of your presets.", name));
  }

  // ---- job files

  const written = (form) => athanor.api("job/write", { job: form.job() });

  function offer(text, name) {
    const address = URL.createObjectURL(new Blob([text], { type: "application/yaml" }));
    athanor.h("a", { href: address, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(address), 10000);
  }

  async function clip(text) {
    try {
      await navigator.clipboard.writeText(text);
      athanor.say(t("Copied."), text);
    } catch (error) { // pages without https may not
      window.prompt(t("Copy this:"), text);
    }
  }

  /** The place where a job file or a verdict sheet is dropped. */
  athanor.recipePlace = function (form) {
    return athanor.dropPlace(t("Start from an earlier recipe: drop a job file or a verdict sheet here"), t("Choose a job file or a verdict sheet"),
      ".yaml,.yml,image/png", false, async ([file]) => {
        if (!file) return;
        if (!/\.ya?ml$/i.test(file.name)) return void athanor.readSheet(file);
        try {
          await athanor.fillForm((await athanor.api("job/read", { text: await file.text() })).job);
        } catch (error) {
          athanor.refused(error);
        }
      });
  };
})();
