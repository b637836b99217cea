// The loss curve as inline SVG: the loss of each step faint, its running average strong, held-out losses as dots with
// the best one ringed.
"use strict";
(function () {
  const athanor = (window.athanor = window.athanor || {});
  const WIDE = 640, HIGH = 220, LEFT = 52, RIGHT = 12, TOP = 12, BOTTOM = 28;

  function range(values) {
    const sorted = values.filter(Number.isFinite).sort((a, b) => a - b);
    if (!sorted.length) return [0, 1];
    // The wildest hundredth of the single losses does not flatten the rest.
    const low = sorted[Math.floor(sorted.length * 0.01)], high = sorted[Math.ceil(sorted.length * 0.99) - 1];
    const room = (high - low || high || 1) * 0.08;
    return [Math.max(0, low - room), high + room];
  }

  function round(value) {
    const power = 10 ** Math.floor(Math.log10(value || 1));
    return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value);
  }

  function ticks(low, high, most) {
    const step = round((high - low) / most || 1), found = [];
    for (let value = Math.ceil(low / step) * step; value <= high + step / 1e6; value += step) found.push(value);
    return found;
  }

  /** The running average of (step, loss) pairs, over the last twentieth of them or so, without a debt to the first. */
  athanor.smooth = function (losses) {
    const keep = 1 - 1 / Math.min(60, Math.max(6, losses.length / 20));
    let sum = 0, weight = 0;
    return losses.map((each) => {
      sum = sum * keep + each[1];
      weight = weight * keep + 1;
      return [each[0], sum / weight];
    });
  };

  /** The SVG for (step, loss, average) and validation events; `steps` is the run's last step, `chosen` the best file's. */
  athanor.plot = function (losses, validations, steps, chosen) {
    const h = athanor.h;
    const smooth = athanor.smooth(losses);
    const held = validations.filter((each) => Number.isFinite(each.loss));
    const [low, high] = range([...losses.map((each) => each[1]), ...smooth.map((each) => each[1]), ...held.map((each) => each.loss)]);
    const last = Math.max(steps || 0, losses.length ? losses[losses.length - 1][0] : 0, 1);
    const x = (step) => LEFT + ((WIDE - LEFT - RIGHT) * step) / last;
    const y = (loss) => TOP + (HIGH - TOP - BOTTOM) * (1 - (Math.min(Math.max(loss, low), high) - low) / (high - low || 1));
    const line = (pairs) => pairs.map((each) => `${x(each[0]).toFixed(1)},${y(each[1]).toFixed(1)}`).join(" ");
    const across = ticks(0, last, 6).filter(Number.isInteger).map((step) =>
      h("text", { x: x(step), y: HIGH - 9, "text-anchor": "middle" }, String(step)));
    const up = ticks(low, high, 4).map((value) => h("g", {},
      h("line", { x1: LEFT, x2: WIDE - RIGHT, y1: y(value), y2: y(value), class: "athanor-rule" }),
      h("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, String(+value.toPrecision(3)))));
    const lowest = held.reduce((found, each) => (!found || each.loss < found.loss ? each : found), null);
    const best = held.find((each) => each.step === chosen) || lowest;
    const dots = held.map((each) => h("circle", { cx: x(each.step), cy: y(each.loss), r: each === best ? 6 : 3.5,
      class: each === best ? "athanor-best" : "athanor-held" },
      h("title", {}, athanor.t(each === best ? "Held-out loss {0} at step {1} (best)" : "Held-out loss {0} at step {1}", each.loss.toFixed(4), each.step))));
    const average = losses.length ? smooth[smooth.length - 1][1].toFixed(4) : athanor.t("none yet");
    return h("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, class: "athanor-plot", role: "img",
      "aria-label": athanor.t("Loss over the steps; running average {0}", average) }, up, across,
      h("polyline", { points: line(losses), class: "athanor-loss" }), h("polyline", { points: line(smooth), class: "athanor-average" }), dots);
  };
})();
