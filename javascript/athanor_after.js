// What comes of a run: its file in the WebUI (a taken name is asked about), the host's cards, the verdict sheet.
"use strict";
(function () {
  const athanor = (window.athanor = window.athanor || {});
  const t = (...words) => athanor.t(...words);
  const CARDS = { lora: "lora", pivotal: "lora", textual_inversion: "textual_inversion", hypernetwork: "hypernetworks", dreambooth: "checkpoints" };
  const BASE_LISTS = ["refresh_sd_model_checkpoint", "forge_refresh_checkpoint"];

  /** Has the host's own lists show a new file; hosts without cards have nothing to press. */
  athanor.refreshCards = function (method) {
    const ids = ["txt2img", "img2img"].map((tab) => `${tab}_${CARDS[method]}_extra_refresh_internal`);
    for (const id of [...ids, ...(method === "dreambooth" ? BASE_LISTS : [])]) {
      const place = document.getElementById(id);
      const button = place && (place.tagName === "BUTTON" ? place : place.querySelector("button"));
      if (button) button.click();
    }
  };

  /** Asks one question; gives the chosen value, or null. `answers` are [value, label, isPrimary]. */
  athanor.ask = function (title, text, answers) {
    const h = athanor.h;
    return new Promise((resolve) => {
      const dialog = h("dialog", { class: "athanor-dialog", "aria-label": title });
      const leave = (value) => { dialog.close(); dialog.remove(); resolve(value); };
      dialog.addEventListener("cancel", (event) => { event.preventDefault(); leave(null); });
      dialog.append(h("h3", {}, title), h("p", {}, text), h("div", { class: "athanor-buttons" },
        answers.map(([value, label, primary]) => h("button", { type: "button", class: primary ? "athanor-primary" : "", onclick: () => leave(value) }, label)),
        h("button", { type: "button", onclick: () => leave(null) }, t("Cancel"))));
      document.getElementById("athanor").append(dialog);
      dialog.showModal();
    });
  };

  /** Asks for a text; gives it, or null. */
  athanor.askText = function (title, text, value, label) {
    const h = athanor.h;
    return new Promise((resolve) => {
      const input = h("input", { type: "text", value, "aria-label": title });
      const dialog = h("dialog", { class: "athanor-dialog", "aria-label": title });
      const leave = (answer) => { dialog.close(); dialog.remove(); resolve(answer); };
      dialog.addEventListener("cancel", (event) => { event.preventDefault(); leave(null); });
      const form = h("form", { onsubmit: (event) => { event.preventDefault(); leave(input.value.trim() || null); } },
        h("h3", {}, title), h("p", {}, text), input, h("div", { class: "athanor-buttons" },
          h("button", { type: "submit", class: "athanor-primary" }, label), h("button", { type: "button", onclick: () => leave(null) }, t("Cancel"))));
      dialog.append(form);
      document.getElementById("athanor").append(dialog);
      dialog.showModal();
      input.select();
    });
  };

  /** Puts a file of a run (its best where `file` is empty) where the host looks; null where the person thought better of it. */
  athanor.publish = async function (run, file) {
    const address = `jobs/${encodeURIComponent(run.id)}/publish`;
    let made = await athanor.api(address, { file });
    if (made.taken) {
      const answer = await athanor.ask(t("“{0}” is there already", made.taken),
        t("The WebUI has another file of this name. It can be replaced (the old one goes to the trash folder), or both can stay."),
        [["replace", t("Replace it"), true], ["both", t("Keep both, the new one as “{0}”", made.free)]]);
      if (!answer) return null;
      made = await athanor.api(address, answer === "replace" ? { file, replace: true } : { file, name: made.free });
    }
    if (made.copied) athanor.refreshCards(run.method);
    return made;
  };

  /** Puts a run's file where the host finds it, then its tag (and the trigger word) into the prompt. */
  athanor.useOutput = async function (button, run, file) {
    await athanor.busy(button, async () => {
      const made = await athanor.publish(run, file);
      if (!made) return;
      if (made.tag) await athanor.useInPrompt(made.trigger, made.tag);
      else athanor.say(t("“{0}” is among the WebUI's models now.", made.name));
    });
  };

  // ---- the verdict

  function bestSentence(run) {
    const best = run.best, loss = Number.isFinite(best.loss) ? best.loss.toFixed(4) : "";
    const measured = run.validations.filter((each) => Number.isFinite(each.loss)).length > 1;
    const kept = best.prior ? t(" Unrelated pictures are at {0} of the base's loss.", best.prior.toFixed(3)) : "";
    const said = {
      lowest: () => t("Step {0} has the lowest held-out loss ({1}).", best.step, loss),
      kept: () => t("Step {0} has the lowest held-out loss ({1}) of those that keep what the model knew.", best.step, loss),
      forgets: () => t("Every file forgets what the model knew; step {0} does least.", best.step),
      last: () => measured ? t("Step {0} is the last, and the only file that was measured.", best.step)
        : t("Step {0} is the last. Overfitting is not measurable, as no pictures are held out.", best.step),
    };
    return (said[best.reason] || said.last)() + kept;
  }

  /** A sheet that nearly fits is made to; of a wider one the best file's pictures are shown first. */
  function showBest(image, verdict) {
    const frame = image.closest(".athanor-sheet"), columns = verdict.steps.length * verdict.weights.length + 2;
    if (image.naturalWidth <= 2 * frame.clientWidth) image.style.maxWidth = "100%";
    else frame.scrollLeft = (image.naturalWidth * (2 + verdict.steps.indexOf(verdict.step) * verdict.weights.length)) / columns - frame.clientWidth / 2;
  }

  function inTheWebUI(run) {
    const h = athanor.h, place = run.published;
    if (!place) return run.state === "done" && run.wants_publishing ? h("p", { class: "athanor-quiet" }, t("It is being put where the WebUI looks.")) : "";
    if (place.problems) return athanor.problems(place.problems);
    if (place.taken) return h("p", {}, t("It is not in the WebUI yet: “{0}” is there already. “Use this” asks what to do.", place.taken));
    return place.name ? h("p", { class: "athanor-good" }, t("In the WebUI as “{0}”.", place.name)) : "";
  }

  /** The box of a finished run: which file is best and why, one button to use it, the sheet. */
  athanor.verdictBox = function (run) {
    const h = athanor.h;
    if (!run.best) return "";
    const address = athanor.url(`jobs/${encodeURIComponent(run.id)}/sheet`) + `?${run.verdict ? run.verdict.time : ""}`;
    const picture = run.verdict ? h("div", { class: "athanor-sheet", tabindex: 0, role: "group", "aria-label": t("Verdict sheet") },
      h("a", { href: address, target: "_blank", title: t("Open it at full size") }, h("img", { src: address, onload: (event) => showBest(event.target, run.verdict),
        alt: t("Before and after: {0}, each at steps {1} and strengths {2}", run.verdict.prompts.join("; "), run.verdict.steps.join(", "), run.verdict.weights.join(", ")) }))) : "";
    return h("section", { class: "athanor-box athanor-verdict" }, h("h4", {}, t("Verdict")), h("p", {}, bestSentence(run)), inTheWebUI(run),
      h("div", { class: "athanor-buttons" },
        h("button", { type: "button", class: "athanor-primary", title: t("Puts the best file where the WebUI looks, and its tag and trigger word into the prompt."),
          onclick: (event) => athanor.useOutput(event.currentTarget, run, "") }, t("Use this")),
        run.verdict ? h("a", { class: "athanor-link", href: address, download: `${run.name}-sheet.png`,
          title: t("The recipe is in the file: dropped on this tab, it fills the form. No path and no caption is in it.") }, t("Save the sheet")) : ""),
      picture);
  };

  // ---- a sheet that is dropped anywhere on the tab

  async function isSheet(file) {
    const beginning = new Uint8Array(await file.slice(0, 1 << 18).arrayBuffer());
    const sign = [..."tEXtathanor\0"].map((letter) => letter.charCodeAt(0));
    return beginning.some((_, place) => sign.every((byte, index) => beginning[place + index] === byte));
  }

  athanor.readSheet = async function (file) {
    try {
      const said = await athanor.api("recipe/read", file, true);
      await athanor.fillForm(said.job);
      const lines = [t("The form holds the recipe of this sheet; choose your pictures, then train.")];
      if (said.base.name && !said.has_base) lines.push(t("It was trained on {0}, which is not here.", said.base.name));
      if (said.left_out.length) lines.push(t("Not taken over: {0}.", said.left_out.join(", ")));
      athanor.say(...lines);
    } catch (error) {
      athanor.say(...(error.problems || [String(error)]));
    }
  };

  document.addEventListener("dragover", (event) => {
    const root = document.getElementById("athanor");
    if (root && root.contains(event.target) && [...event.dataTransfer.types].includes("Files")) event.preventDefault();
  });

  /** A file dropped beside its place must not take the page away. */
  document.addEventListener("drop", (event) => {
    const root = document.getElementById("athanor");
    if (root && root.contains(event.target) && event.dataTransfer && event.dataTransfer.files.length) event.preventDefault();
  });

  document.addEventListener("drop", async (event) => {
    const root = document.getElementById("athanor"), files = event.dataTransfer ? [...event.dataTransfer.files] : [];
    if (event.athanorLooked || !root || !root.contains(event.target) || files.length !== 1 || files[0].type !== "image/png") return;
    event.preventDefault();
    event.stopPropagation();
    const target = event.target, file = files[0];
    if (await isSheet(file)) return void athanor.readSheet(file);
    const given = new DataTransfer();
    given.items.add(file); // an ordinary picture: for whoever it was dropped on
    const again = new DragEvent("drop", { bubbles: true, cancelable: true, dataTransfer: given });
    again.athanorLooked = true;
    target.dispatchEvent(again);
  }, true);
})();
