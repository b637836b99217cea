// The trainers' environment: a banner above the screens while it is missing, being made or broken, and a line below them
// that says what it is and can have it mended.
"use strict";
(function () {
  const athanor = (window.athanor = window.athanor || {});
  let h, banner, open = false, last = null, turn = 0;

  /** The banner's element; it is filled and kept up to date while the tab can be seen. */
  athanor.setupBanner = function () {
    h = athanor.h;
    last = null;
    banner = h("div", { id: "athanor-setup", "data-state": "unknown" });
    poll(++turn);
    return banner;
  };

  async function poll(mine) {
    let pause = 15000;
    if (mine !== turn) return; // the page made the tab anew
    if (athanor.isVisible() || !last) {
      try {
        const view = await athanor.api("setup" + (open ? "?log=true" : ""));
        draw(view);
        pause = view.state === "ready" ? 30000 : view.state === "building" ? 1500 : 5000;
      } catch (error) { pause = 5000; }
    }
    setTimeout(() => poll(mine), banner.isConnected ? pause : 500);
  }

  function draw(view) {
    const said = JSON.stringify([view, open]);
    if (said === last) return;
    const was = banner.dataset.state;
    last = said;
    banner.dataset.state = view.state;
    if (view.state === "ready") {
      athanor.fill(banner, athanor.problems(view.notes, "note"), view.can_repair ? details(view) : "");
      if (was === "building") athanor.say(athanor.t("The trainers' environment is ready."));
      return;
    }
    const building = view.state === "building";
    athanor.fill(banner,
      h("div", { class: "athanor-setup", role: "status" },
        h("div", { class: "athanor-setup-line" },
          h("b", {}, building ? athanor.t("Setting up") : athanor.t("Training is not ready")),
          h("span", {}, athanor.said(view.sentence)),
          building ? "" : h("button", { type: "button", class: "athanor-primary", onclick: repair },
            view.state === "missing" ? athanor.t("Set up") : athanor.t("Repair"))),
        building ? progress(view) : "",
        view.why ? h("small", {}, athanor.t("It is kept in {0}, because {1}.", view.place, athanor.said(view.why))) : "",
        details(view)),
      athanor.problems(view.notes, "note"));
  }

  function progress(view) {
    const text = athanor.t("Step {0} of {1}: {2}", view.step, view.steps, athanor.said(view.doing));
    return [h("progress", { max: Math.max(view.steps, 1), value: Math.max(view.step - 0.5, 0), "aria-label": text }),
      h("small", { class: "athanor-setup-doing" }, text, view.line ? h("code", {}, view.line) : "")];
  }

  function details(view) {
    const names = Object.entries(view.versions || {}).map(([name, version]) => `${name} ${version}`).join(", ");
    const log = (view.log || []).join("\n");
    const box = h("details", { open, class: "athanor-setup-more", ontoggle: (event) => {
      if (event.target.open === open) return;
      open = event.target.open;
      poll(++turn);
    } },
      h("summary", {}, view.state === "ready" ? athanor.t("The trainers' environment") : athanor.t("Log")),
      names ? h("p", {}, names) : "",
      view.place ? h("small", {}, view.place) : "",
      view.state === "ready" ? h("div", {}, h("button", { type: "button", onclick: repair }, athanor.t("Check and repair"))) : "",
      log ? h("pre", { class: "athanor-log", tabindex: 0 }, log) : "");
    return box;
  }

  function repair(event) {
    return athanor.busy(event.target, async () => {
      await athanor.api("setup/repair", {});
      await poll(++turn);
    });
  }
})();
