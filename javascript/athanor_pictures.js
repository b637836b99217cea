// The pictures of a job: dropped or chosen ones are copied, a few are shown, and captions are offered where there are none.
"use strict";
(function () {
  const athanor = (window.athanor = window.athanor || {});
  const t = (...words) => athanor.t(...words);
  const SHOWN = 8;

  /** A place for files, by dropping or by choosing. */
  athanor.dropPlace = function (text, label, accept, multiple, take) {
    const h = athanor.h;
    const input = h("input", { type: "file", accept, multiple, class: "athanor-file", "aria-label": label,
      onchange: () => { take([...input.files]); input.value = ""; } });
    const place = h("label", { class: "athanor-drop" }, input, h("span", {}, text));
    place.addEventListener("dragover", (event) => { event.preventDefault(); place.classList.add("athanor-over"); });
    place.addEventListener("dragleave", () => place.classList.remove("athanor-over"));
    place.addEventListener("drop", (event) => {
      event.preventDefault();
      event.stopPropagation();
      place.classList.remove("athanor-over");
      take([...event.dataTransfer.files]);
    });
    return place;
  };

  athanor.picturePlace = function (form, changed) {
    const rest = t("or drop pictures here, or click to choose them");
    const place = athanor.dropPlace(rest, t("Choose pictures"), "image/*,.txt,.caption", true, upload);
    const said = place.querySelector("span");

    async function upload(files) {
      const { parts } = form;
      const folder = parts.name.value.trim() || parts.trigger.value.trim() || "pictures";
      let done = 0, last = null;
      const refused = [];
      for (const file of files) {
        said.textContent = t("Copying {0} of {1} …", ++done, files.length);
        try {
          last = await athanor.api(`data/upload?${new URLSearchParams({ folder, name: file.name })}`, file, true);
        } catch (error) {
          refused.push(...error.problems);
        }
      }
      said.textContent = rest;
      if (refused.length) athanor.say(...refused.slice(0, 4));
      if (last) { parts.data.value = last.folder; await changed(); }
    }
    return place;
  };

  /** What the folder holds: some pictures, a sentence, and an offer where no picture has a caption. */
  athanor.drawSeen = function (form, changed) {
    const h = athanor.h, seen = form.seen, place = form.parts.seen;
    if (!seen) return athanor.fill(place);
    if (seen.refused) return athanor.fill(place, athanor.problems(seen.refused), allow(form, changed, seen.refused));
    const shown = seen.pictures.slice(0, SHOWN);
    const captioned = seen.pictures.filter((card) => card.caption).length;
    const address = (file) => athanor.url(`data/thumbnail?${new URLSearchParams({ folder: seen.folder, file })}`);
    return athanor.fill(place, h("div", { class: "athanor-strip" }, shown.map((card) => h("img", { src: address(card.file), alt: card.caption || card.file, title: card.caption || card.file, loading: "lazy" })),
      form.pictures > shown.length ? h("span", {}, `+${form.pictures - shown.length}`) : ""),
    captioned || !form.pictures ? "" : offer(form, changed));
  };

  function allow(form, changed, problems) {
    if (!problems[0].includes("may use")) return "";
    const button = athanor.h("button", { type: "button", onclick: () => athanor.busy(button, async () => {
      await athanor.api("data/folders", { path: form.parts.data.value.trim() });
      await changed();
    }) }, t("Let this page use the folder"));
    return button;
  }

  function offer(form, changed) {
    const h = athanor.h, purpose = form.known.purposes[form.purpose], { parts, seen } = form;
    const words = purpose.caption.replace("{trigger}", parts.trigger.value.trim() || parts.name.value.trim() || "sks").replace("{class}", purpose.class);
    const text = h("input", { type: "text", value: words, autocomplete: "off" });
    const button = h("button", { type: "button", onclick: () => athanor.busy(button, async () => {
      const edits = seen.pictures.filter((card) => !card.caption && !card.problems.includes("broken")).map((card) => ({ file: card.file, text: text.value.trim(), was: card.caption || "" }));
      await athanor.api("data/captions", { folder: seen.folder, label: t("One caption for all"), edits });
      await changed();
    }) }, t("Give every picture this caption"));
    return h("div", { class: "athanor-captionless" }, h("p", {}, t("No picture has a caption. One for all of them is a good start; better is one that says what each shows.")),
      h("div", { class: "athanor-row" }, athanor.labelled(t("Caption for all pictures"), "", text), button));
  }
})();
