// Runs: the queue on the left, one run on the right; both are polled while they can be seen.
"use strict";
(function () {
  const athanor = (window.athanor = window.athanor || {});
  athanor.screens = athanor.screens || {};
  const t = (...words) => athanor.t(...words);
  const WORKING = ["queued", "preparing", "training", "stopping"];
  const WORDS = { queued: "waiting", preparing: "getting ready", training: "training", stopping: "stopping", stopped: "stopped",
    done: "done", failed: "failed", interrupted: "interrupted" };
  const BUTTONS = {
    stop: ["Stop", "Saves, then stops; it can be resumed."],
    stop_now: ["Stop now", "Ends it at once; what was not saved is lost."],
    live: ["Draw with it now", "Puts a tag into the prompt that draws with what it has learned so far, while it goes on."],
    save: ["Save now", "Writes a file that can be used, and goes on."],
    sample: ["Draw samples now", "Draws the sample prompts, and goes on."],
    resume: ["Resume", "Goes on from the last saved state."],
    again: ["Run again with changes", "Puts its options into the form."],
    delete: ["Delete", "Moves it to the trash folder of the runs."],
  };
  const TOY = 2 ** 28; // bytes; of a smaller model the trainer's own share is lost in what its modules take
  const PATIENT = 10000; // milliseconds between two looks while another screen is shown
  let h, parts;
  const state = { chosen: null, run: null, losses: [], generation: null, shownStep: null, running: false, busy: false, published: null };

  function build(panel) {
    h = athanor.h;
    parts = { list: h("div", { class: "athanor-list", "aria-label": t("Runs") }), detail: h("div", { class: "athanor-detail" }) };
    athanor.fill(panel, h("div", { class: "athanor-columns athanor-runs" }, parts.list, parts.detail));
    buildDetail();
    if (!state.running) { state.running = true; poll(); }
  }

  // ---- polling

  async function poll() {
    let pause = 3000;
    if (athanor.isVisible() && athanor.shown === "runs") {
      pause = (await refresh()) ? 1000 : 3000;
    } else if (state.busy && document.visibilityState === "visible") {
      // The host's cards show a new file wherever the person is meanwhile.
      pause = PATIENT;
      await athanor.api("jobs").then((said) => noticeFiles(said.jobs)).catch(() => {});
    }
    setTimeout(poll, pause);
  }

  /** Asks once at a time: whoever asks meanwhile gets the same answer, and after a choice a new one. */
  function refresh() {
    state.asking = state.asking || ask().finally(() => { state.asking = null; });
    return state.asking;
  }

  async function ask() {
    try {
      const runs = (await athanor.api("jobs")).jobs;
      if (!state.chosen && runs.length) state.chosen = runs[0].id;
      drawList(runs);
      noticeFiles(runs);
      if (state.chosen) await refreshRun();
      return state.busy;
    } catch (error) {
      const problems = error.problems || [String(error)];
      if (state.run) said(parts.said, JSON.stringify(problems), () => athanor.problems(problems)); // until the next answer
      else athanor.fill(parts.list, athanor.problems(problems));
      return false;
    }
  }

  /** Has the host's cards drawn anew when a run's file was put there since the last look. */
  function noticeFiles(runs) {
    state.busy = runs.some((run) => WORKING.includes(run.state) || (run.state === "done" && run.wants_publishing && !run.published));
    const there = new Map(runs.filter((run) => run.published && run.published.name).map((run) => [`${run.id} ${run.published.time}`, run.method]));
    const fresh = state.published ? [...there].filter(([key]) => !state.published.has(key)).map(([, method]) => method) : [];
    state.published = new Set(there.keys());
    for (const method of new Set(fresh)) athanor.refreshCards(method);
  }

  async function refreshRun() {
    const id = state.chosen, last = state.losses.length ? state.losses[state.losses.length - 1][0] : -1;
    try {
      const run = await athanor.api(`jobs/${encodeURIComponent(id)}?since=${last}&generation=${state.generation ?? -1}`);
      if (id !== state.chosen) return;
      const known = run.generation === state.generation ? state.losses : [];
      state.losses = [...known, ...run.losses.filter((each) => !known.length || each[0] > known[known.length - 1][0])];
      state.generation = run.generation;
      state.run = run;
      drawDetail(run);
    } catch (error) {
      if (error.status !== 404) throw error;
      choose(null);
    }
  }

  function choose(id) {
    Object.assign(state, { chosen: id, run: null, losses: [], generation: null, shownStep: null });
    parts.detail.dataset.state = "none";
    return (state.asking || Promise.resolve()).then(refresh);
  }

  athanor.openRun = function (id) {
    athanor.show("runs");
    return choose(id);
  };

  // ---- the list

  const update = (element, name, value) => { if (element[name] !== value) element[name] = value; };

  const updateName = (element, name) => { if (element.textContent !== name) athanor.fill(element, athanor.asIs(name)); };

  function drawList(runs) {
    parts.detail.hidden = !runs.length;
    if (!runs.length) {
      athanor.fill(parts.list, h("p", { class: "athanor-quiet" }, t("Nothing was trained here yet. Start under Train.")));
      return;
    }
    const cards = new Map([...parts.list.querySelectorAll(".athanor-card")].map((card) => [card.dataset.id, card]));
    const wanted = runs.map((run) => drawCard(cards.get(run.id) || makeCard(run.id), run));
    if (wanted.length !== parts.list.children.length || wanted.some((card, index) => parts.list.children[index] !== card)) {
      athanor.fill(parts.list, wanted);
    }
  }

  function makeCard(id) {
    const card = h("div", { class: "athanor-card" },
      h("button", { type: "button", class: "athanor-open", onclick: () => choose(id) },
        h("b", {}, ""), h("small", {}, ""), h("span", { class: "athanor-bar" }, h("i", {}))),
      h("span", { class: "athanor-moves" },
        [["up", "▲", t("Earlier")], ["down", "▼", t("Later")]].map(([where, sign, title]) => h("button", { type: "button", title, "aria-label": title,
          onclick: (event) => athanor.busy(event.currentTarget, () => athanor.api(`jobs/${encodeURIComponent(id)}/move`, { where }).then(refresh)) }, sign))));
    card.dataset.id = id;
    return card;
  }

  function drawCard(card, run) {
    updateName(card.querySelector("b"), run.name === run.id ? run.id : `${run.name} · ${run.id}`);
    update(card.querySelector("small"), "textContent", summary(run));
    update(card.querySelector("small"), "title", summary(run));
    card.querySelector("i").style.width = `${(run.progress * 100).toFixed(1)}%`;
    card.dataset.state = run.state;
    card.classList.toggle("athanor-chosen", run.id === state.chosen);
    card.querySelector(".athanor-open").setAttribute("aria-current", String(run.id === state.chosen));
    return card;
  }

  function summary(run) {
    if (run.state === "queued") return run.place === 1 ? t("waiting, next") : t("waiting, number {0}", run.place);
    const words = [run.state === "preparing" ? doing(run) || t("getting ready") : t(WORDS[run.state])];
    if (run.steps && run.state !== "preparing") words.push(t("step {0} of {1}", run.step, run.steps));
    if (run.state === "training" && run.eta) words.push(t(run.eta_measured ? "{0} left" : "about {0} left", athanor.duration(run.eta)));
    return words.join(" · ");
  }

  /** The time that is left: an estimate until ten steps were timed. */
  const left = (run) => (run.eta_measured ? t("{0} left", athanor.duration(run.eta)) : t("about {0} left (estimate)", athanor.duration(run.eta)));
  const doing = (run) => run.doing && (run.parts ? t("{0}: {1} of {2}", t(run.doing), run.done_parts, run.parts) : t(run.doing));

  // ---- one run

  function buildDetail() {
    Object.assign(parts, {
      title: h("h3", {}), status: h("p", { class: "athanor-status" }), sharing: h("p", { class: "athanor-quiet athanor-sharing" }), bar: h("i", {}), buttons: h("div", { class: "athanor-buttons" }),
      said: h("div"), verdict: h("div"), plot: h("div", { class: "athanor-plot-box" }), legend: h("p", { class: "athanor-legend" }),
      samples: h("div", { class: "athanor-samples" }), slider: h("input", { type: "range", min: 0, max: 0, step: 1, "aria-label": t("Samples by step"),
        oninput: () => { state.shownStep = Number(parts.slider.value); drawSamples(state.run); } }),
      sliderStep: h("span", { class: "athanor-quiet" }), outputs: h("div", { class: "athanor-outputs" }), log: h("pre", { class: "athanor-log", tabindex: 0 }),
      sampleBox: null,
    });
    parts.sampleBox = h("div", { class: "athanor-box" }, h("h4", {}, t("Sample pictures")),
      h("div", { class: "athanor-slider" }, parts.slider, parts.sliderStep), parts.samples);
    athanor.fill(parts.detail, parts.title, parts.status, h("div", { class: "athanor-bar athanor-tall", role: "progressbar",
      "aria-label": t("Progress"), "aria-valuemin": 0, "aria-valuemax": 100 }, parts.bar), parts.sharing, parts.buttons, parts.said, parts.verdict,
      parts.plotBox = h("div", { class: "athanor-box" }, h("h4", {}, t("Loss"), athanor.help(t("How far the model's guesses are from the pictures. It is noisy; watch the strong line. Held-out pictures (dots) tell whether it learns or only memorises."))), parts.plot, parts.legend),
      parts.sampleBox, h("div", { class: "athanor-box" }, h("h4", {}, t("Files")), parts.outputs),
      h("details", {}, h("summary", {}, t("What the trainer printed")), parts.log));
    parts.detail.dataset.state = "none";
  }

  function drawDetail(run) {
    parts.detail.dataset.state = run.state;
    updateName(parts.title, run.name);
    update(parts.status, "textContent", statusLine(run));
    update(parts.sharing, "textContent", sharingLine(run));
    const shown = run.state === "preparing" && run.parts ? run.done_parts / run.parts : run.progress;
    parts.bar.style.width = `${(shown * 100).toFixed(1)}%`;
    parts.bar.parentElement.setAttribute("aria-valuenow", Math.round(shown * 100));
    drawButtons(run);
    said(parts.said, JSON.stringify([run.problems, run.notes]), () => [athanor.problems(run.problems), athanor.problems(run.notes, "note")]);
    said(parts.verdict, JSON.stringify([run.id, run.best, run.verdict, run.published, run.state]), () => athanor.verdictBox(run));
    const chosen = run.best && run.best.step;
    parts.plotBox.hidden = run.state === "done" && !state.losses.length; // one pass over the pictures has no losses
    said(parts.plot, `${state.losses.length} ${run.validations.length} ${run.generation} ${run.step} ${chosen}`, () => state.losses.length
      ? athanor.plot(state.losses, run.validations, run.steps, chosen) : h("p", { class: "athanor-quiet" }, t("The curve begins with the first step.")));
    update(parts.legend, "textContent", legend(run));
    drawSamples(run);
    said(parts.outputs, JSON.stringify([run.id, run.outputs, run.best]), () => run.outputs.length ? run.outputs.map((output) => outputRow(run, output))
      : h("p", { class: "athanor-quiet" }, t("The file appears here when the run is done, or with “Save now”.")));
    update(parts.log, "textContent", run.log.join("\n"));
  }

  /** Draws a part anew only when what it shows has changed, so that nothing flickers. */
  function said(place, key, draw) {
    if (place.dataset.key === key) return;
    place.dataset.key = key;
    athanor.fill(place, [draw()].flat());
  }

  /** How a run at work shares the device with the WebUI's model; afterwards too, what that took or gave. */
  function sharingLine(run) {
    const sharing = run.sharing || {}, told = sharing.attached || {};
    if (!sharing.reason) return "";
    const words = WORKING.includes(run.state) ? [athanor.said(sharing.reason)] : [];
    if (run.is_paused) words.push(athanor.t("Paused while a picture is drawn."));
    if (told.bytes > TOY && told.private_bytes !== null) {
      words.push(athanor.t("Of the model's {0}, {1} are the trainer's own.", athanor.size(told.bytes), athanor.size(told.private_bytes)));
    }
    if (sharing.freed_bytes !== null) words.push(athanor.t("{0} came free.", athanor.size(sharing.freed_bytes)));
    return words.join(" ");
  }

  function statusLine(run) {
    const words = [t(WORDS[run.state])];
    if (["preparing", "training"].includes(run.state) && doing(run)) words.push(doing(run));
    if (run.steps) words.push(t("step {0} of {1}", run.step, run.steps));
    if (run.eta) words.push(left(run));
    if (run.seconds_per_step) words.push(t("{0} s a step", run.seconds_per_step.toFixed(run.seconds_per_step < 1 ? 2 : 1)));
    if (run.live) words.push(t("drawn with at step {0}", run.live.step));
    return words.join(" · ");
  }

  function legend(run) {
    if (!state.losses.length) return "";
    const held = run.validations.filter((each) => Number.isFinite(each.loss));
    const best = held.reduce((found, each) => (!found || each.loss < found.loss ? each : found), null);
    const average = t("Running average {0}", athanor.smooth(state.losses).pop()[1].toFixed(4));
    return best ? `${average} · ${t("lowest held-out loss {0} at step {1}", best.loss.toFixed(4), best.step)}` : average;
  }

  function drawButtons(run) {
    said(parts.buttons, run.id + run.actions.join(), () => run.actions.filter((action) => BUTTONS[action]).map((action) => {
      const [label, title] = BUTTONS[action];
      return h("button", { type: "button", title: t(title), class: ["resume", "live"].includes(action) ? "athanor-primary" : "", onclick: (event) => act(run, action, event.currentTarget) },
        action === "stop" && run.state === "queued" ? t("Take out of the queue") : t(label));
    }));
  }

  async function act(run, action, button) {
    await athanor.busy(button, async () => {
      const id = encodeURIComponent(run.id);
      if (action === "again") return athanor.fillForm((await athanor.api(`jobs/${id}/job`)).job);
      if (action === "live") return drawLive(await athanor.api(`jobs/${id}/live`, {}));
      await athanor.api(`jobs/${id}/${action}`, {});
      if (action === "delete") {
        athanor.say(t("“{0}” lies in the trash folder of the runs.", run.id));
        state.chosen = null;
        state.losses = [];
      }
      if (action === "save" || action === "sample") athanor.say(t("Asked for; it is done after the present step."));
      return refresh();
    });
  }

  async function drawLive(made) {
    await athanor.useInPrompt(made.trigger, made.tag);
    return refresh();
  }

  function drawSamples(run) {
    const steps = [...new Set(run.samples.map((sample) => sample.step))];
    parts.sampleBox.hidden = !steps.length;
    if (!steps.length) return;
    const newest = state.shownStep === null || state.shownStep >= steps.length - 1;
    parts.slider.max = steps.length - 1;
    const index = newest ? steps.length - 1 : state.shownStep;
    if (newest) { state.shownStep = null; parts.slider.value = index; }
    parts.slider.disabled = steps.length < 2;
    update(parts.sliderStep, "textContent", t("step {0}", steps[index]));
    const shown = run.samples.filter((sample) => sample.step === steps[index]);
    said(parts.samples, run.id + shown.map((sample) => sample.path).join(), () => shown.map((sample) => h("figure", {},
      h("img", { src: athanor.url(`jobs/${encodeURIComponent(run.id)}/samples/${encodeURIComponent(sample.path.split("/").pop())}`), alt: sample.prompt, loading: "lazy" }),
      h("figcaption", {}, athanor.asIs(sample.prompt)))));
  }

  function outputRow(run, output) {
    const isBest = run.best && run.best.path === output.file;
    return h("div", { class: "athanor-output" },
      h("span", {}, output.file, h("small", {}, ` ${t("step {0}", output.step)}`), isBest ? h("b", { class: "athanor-badge" }, t("best")) : ""),
      h("button", { type: "button", onclick: (event) => athanor.useOutput(event.currentTarget, run, output.file) },
        run.method === "dreambooth" ? t("Put into the WebUI") : t("Use in prompt")));
  }

  athanor.screens.runs = { build, shown: () => { if (parts) refresh(); } };
})();
