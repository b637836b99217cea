// The pictures of a job: dropped or chosen ones are copied, a few are shown, and captions are offered where there are none.
"use strict";
(function () {
  const athanor = (window.athanor = window.athanor || {});
  const t = (...words) => athanor.t(...words);
  const SHOWN = 8;

  /** A place for files, by dropping or by choosing; `take` gets the files, and the name of a folder that was dropped. */
  athanor.dropPlace = function (text, label, accept, multiple, take) {
    const h = athanor.h;
    const input = h("input", { type: "file", accept, multiple, class: "athanor-file", "aria-label": label,
      onchange: () => { take([...input.files]); input.value = ""; } });
    const place = h("label", { class: "athanor-drop" }, input, h("span", {}, text));
    place.addEventListener("dragover", (event) => { event.preventDefault(); place.classList.add("athanor-over"); });
    place.addEventListener("dragleave", () => place.classList.remove("athanor-over"));
    place.addEventListener("drop", async (event) => {
      event.preventDefault();
      event.stopPropagation();
      place.classList.remove("athanor-over");
      const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry && item.webkitGetAsEntry()).filter(Boolean);
      const folder = entries.find((entry) => entry.isDirectory);
      if (!folder) take([...event.dataTransfer.files]);
      else take((await Promise.all(entries.map(filesOf))).flat(), folder.name);
    });
    return place;
  };

  /** The files of something dropped, with those of every folder inside. */
  async function filesOf(entry) {
    if (entry.isFile) return [await new Promise((give, refuse) => entry.file(give, refuse))];
    const reader = entry.createReader(), found = [];
    for (;;) { // a reader gives at most a hundred at a time
      const some = await new Promise((give, refuse) => reader.readEntries(give, refuse));
      if (!some.length) break;
      found.push(...some);
    }
    return (await Promise.all(found.filter((each) => !each.name.startsWith(".")).map(filesOf))).flat();
  }

  const isCaption = (file) => /\.(txt|caption)$/i.test(file.name);
  const isWanted = (file) => isCaption(file) || /^image\//.test(file.type) || /\.(png|jpe?g|webp|bmp|gif|tiff?|avif|jfif)$/i.test(file.name);

  /** Copies pictures and captions into a folder of their own, three at a time; `tell` shows how far it is. Gives that
   * folder's path, and the sentences about what was refused. */
  athanor.copyFiles = async function (files, into, tell) {
    const wanted = files.filter(isWanted), refused = wanted.length ? [] : [t("No picture was among what was dropped.")];
    const queue = [...wanted].sort((one, other) => isCaption(one) - isCaption(other)); // a caption never comes alone
    let done = 0, folder = "";
    async function work() {
      while (queue.length) {
        const file = queue.shift();
        try {
          folder = (await athanor.api(`data/upload?${new URLSearchParams({ folder: into, name: file.name })}`, file, true)).folder;
        } catch (error) {
          refused.push(...(error.problems || [String(error)]));
        }
        tell(t("Copying {0} of {1} …", ++done, wanted.length));
      }
    }
    await Promise.all([work(), work(), work()]);
    return { folder, refused };
  };

  /** A name under which no pictures lie yet: what is dropped today is not mixed with what was dropped last week. */
  athanor.freeFolder = async (name) => (await athanor.api(`data/free-folder?${new URLSearchParams({ name })}`)).name;

  athanor.picturePlace = function (form, changed) {
    const rest = t("or drop pictures here, or click to choose them");
    const place = athanor.dropPlace(rest, t("Choose pictures"), "image/*,.txt,.caption", true, upload);
    const said = place.querySelector("span");

    async function upload(files, dropped) {
      const { parts } = form, shown = parts.data.value.trim();
      const wanted = (parts.name.dataset.own && parts.name.value.trim()) || form.word() || dropped || t("my pictures");
      const into = shown && shown === form.copied ? shown.split(/[\\/]/).pop() : await athanor.freeFolder(wanted);
      const { folder, refused } = await athanor.copyFiles(files, into, (text) => { said.textContent = text; });
      said.textContent = rest;
      if (refused.length) athanor.say(...refused.slice(0, 4));
      if (folder) { parts.data.value = form.copied = folder; await changed(); }
    }
    return place;
  };

  /** What the folder holds: some pictures, a sentence, and an offer where no picture has a caption. */
  athanor.drawSeen = function (form, changed) {
    const h = athanor.h, seen = form.seen, place = form.parts.seen;
    form.offered = null;
    if (!seen) return athanor.fill(place);
    if (seen.refused) return athanor.fill(place, athanor.problems(seen.refused), allow(form, changed, seen.refused));
    if (!form.pictures) return athanor.fill(place, athanor.problems([t("There is no picture in this folder.")]));
    const shown = seen.pictures.filter((card) => !card.problems.includes("broken")).slice(0, SHOWN);
    const captioned = seen.pictures.filter((card) => card.caption).length;
    const address = (file) => athanor.url(`data/thumbnail?${new URLSearchParams({ folder: seen.folder, file })}`);
    return athanor.fill(place, h("div", { class: "athanor-strip" }, shown.map((card) => h("img", { src: address(card.file), alt: card.caption || card.file, title: card.caption || card.file, loading: "lazy" })),
      form.pictures > shown.length ? h("span", {}, `+${form.pictures - shown.length}`) : "",
      h("button", { type: "button", class: "athanor-link", onclick: () => athanor.openFolder(seen.folder) }, t("Show all of them, with their captions"))),
    captioned || !form.asks("captions") ? "" : offer(form, changed));
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
    const h = athanor.h, purpose = form.known.purposes[form.purpose], { seen } = form;
    // A word that nobody gave yet stays out: it is put in front of captions that lack it.
    const given = () => (form.asks("trigger") || form.parts.name.dataset.own ? form.word() : "");
    const words = () => purpose.caption.replace("{trigger}", given).replace("{class}", purpose.class).replace(/^[\s,]+|\s+(?=\s)/g, "");
    const text = h("input", { type: "text", value: words(), autocomplete: "off", oninput: () => { form.offered = null; } });
    form.offered = () => { text.value = words(); };
    const button = h("button", { type: "button", onclick: () => athanor.busy(button, async () => {
      const edits = seen.pictures.filter((card) => !card.caption && !card.problems.includes("broken")).map((card) => ({ file: card.file, text: text.value.trim(), was: card.caption || "" }));
      await athanor.api("data/captions", { folder: seen.folder, label: t("One caption for all"), edits });
      await changed();
    }) }, t("Give every picture this caption"));
    return h("div", { class: "athanor-captionless" }, h("p", {}, t("No picture has a caption. One for all of them is a good start; better is one that says what each shows.")),
      h("div", { class: "athanor-row" }, athanor.labelled(t("Caption for all pictures"), "", text), button));
  }
})();
