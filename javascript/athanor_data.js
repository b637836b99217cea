// Data: a folder's pictures with their captions, what may be wrong with them, and changing many captions at once.
// The grid is in athanor_data_grid.js, the tags and their tools in athanor_data_tags.js.
"use strict";
(function () {
  const athanor = (window.athanor = window.athanor || {});
  athanor.screens = athanor.screens || {};
  const data = (athanor.data = athanor.data || {});
  const KINDS = {
    broken: "Cannot be read", caption: "No caption", copy: "Copies", alike: "Nearly the same", small: "Too small", soft: "Soft",
  };
  const t = (text, ...values) => athanor.t(text, ...values);
  let h, parts, purposes = null, me = { local: false, roots: [] };

  // What is shown: the folder as the server told it, which pictures are selected, and which are wanted.
  const state = (data.state = { view: null, byFile: new Map(), selected: new Set(), kind: "", bucket: "", tags: new Set(), text: "" });

  data.pictures = (number) => (number === 1 ? t("1 picture") : t("{0} pictures", number));

  /** The pictures that pass every filter, in their order. */
  data.shownPictures = function () {
    const words = state.text.trim().toLowerCase();
    return state.view.pictures.filter((picture) =>
      (!state.kind || picture.kinds.has(state.kind)) &&
      (!state.bucket || data.bucketOf(picture) === state.bucket) &&
      [...state.tags].every((tag) => data.tagsOf(picture.caption).some((each) => each.toLowerCase() === tag)) &&
      (!words || `${picture.file} ${picture.caption || ""}`.toLowerCase().includes(words)));
  };

  /** What a change is applied to: the selected pictures, or all that are shown where none is selected. */
  data.targets = function () {
    const shown = data.shownPictures().filter((picture) => !picture.kinds.has("broken"));
    const chosen = shown.filter((picture) => state.selected.has(picture.file));
    return state.selected.size ? chosen : shown;
  };

  /** What a picture is cut to; nothing for one that cannot be read, which nobody learns from. */
  data.bucketOf = (picture) => (picture.bucket && !picture.kinds.has("broken") ? `${picture.bucket[0]} × ${picture.bucket[1]}` : "");

  // ---- the frame

  function build(panel) {
    h = athanor.h;
    parts = data.parts = {
      folder: h("input", { type: "text", placeholder: t("Full path of a folder with pictures"), list: "athanor-data-folders", "aria-label": t("Folder with pictures"),
        onkeydown: (event) => { if (event.key === "Enter") open(); } }),
      folders: h("datalist", { id: "athanor-data-folders" }), choices: h("div", { class: "athanor-folders" }),
      open: h("button", { type: "button", onclick: () => open() }, t("Show")),
      said: h("div", { "aria-live": "polite" }), head: h("div"), chips: h("div", { class: "athanor-chips", role: "group", "aria-label": t("Show only") }),
      offer: h("div"), tools: h("div", { class: "athanor-tools" }), grid: h("div", { class: "athanor-pictures" }), end: h("div", { class: "athanor-end" }),
      side: h("div", { class: "athanor-tagside" }),
    };
    parts.body = h("div", { class: "athanor-dataset", hidden: true }, h("div", {}, parts.tools, parts.grid, parts.end), parts.side);
    athanor.fill(panel,
      h("div", { class: "athanor-row" }, parts.folder, parts.folders, parts.open), parts.choices, dropPlace(),
      parts.said, parts.head, parts.chips, parts.offer, parts.body);
    data.watchEnd(parts.end);
    athanor.api("me").then((answer) => { me = answer; }).catch(() => {});
    athanor.api("recipes").then((recipes) => { purposes = recipes.purposes; if (state.view) drawOffer(); }).catch(() => {});
    listFolders();
  }

  async function listFolders() {
    try {
      const { folders } = await athanor.api("data/folders");
      athanor.fill(parts.folders, folders.map((each) => h("option", { value: each.path })));
      athanor.fill(parts.choices, folders.slice(0, 24).map((each) =>
        h("button", { type: "button", class: "athanor-chip", title: each.path, onclick: () => open(each.path) },
          athanor.asIs(each.name), h("small", {}, ` ${each.pictures}`))));
    } catch (error) {
      athanor.fill(parts.choices);
    }
  }

  function shown() {
    const last = localStorage.getItem("athanor-data-folder");
    if (!state.view && last && !parts.folder.value) open(last, true);
  }

  // ---- opening

  async function open(folder, quietly) {
    const wanted = athanor.path(folder || parts.folder.value);
    if (!wanted) return;
    parts.folder.value = wanted;
    await athanor.busy(parts.open, async () => {
      try {
        await read(wanted);
      } catch (error) {
        if (quietly) { localStorage.removeItem("athanor-data-folder"); parts.folder.value = ""; return; }
        const refused = (error.problems || [""])[0].includes("may use");
        athanor.fill(parts.said, athanor.problems(error.problems || [String(error)]), refused && me.local
          ? h("div", { class: "athanor-buttons" }, h("button", { type: "button", class: "athanor-primary", onclick: add }, t("Let this page use the folder"))) : "");
      }
    });
  }

  async function add(event) {
    await athanor.busy(event.currentTarget, async () => {
      await athanor.api("data/folders", { path: parts.folder.value.trim() });
      await open();
      listFolders();
    });
  }

  /** Reads a folder anew; keeps selection and filters where it is the one that is shown. */
  async function read(folder) {
    const query = new URLSearchParams({ folder });
    let cutting = athanor.trainCutting ? athanor.trainCutting() : {};
    // The form's bucket options go with its own resolution; another one that is tried here has the usual ones.
    if (state.resolution && state.resolution !== cutting.resolution) cutting = { resolution: state.resolution };
    for (const [name, value] of Object.entries(cutting)) query.set(name, value);
    const view = await athanor.api(`data?${query}`);
    const same = state.view && state.view.folder === view.folder;
    view.pictures.forEach((picture) => { picture.kinds = new Set(picture.problems); });
    state.view = view;
    state.byFile = new Map(view.pictures.map((picture) => [picture.file, picture]));
    if (!same) Object.assign(state, { selected: new Set(), kind: "", bucket: "", tags: new Set(), text: "" });
    for (const file of [...state.selected]) if (!state.byFile.has(file)) state.selected.delete(file);
    state.looked = null;
    localStorage.setItem("athanor-data-folder", view.folder);
    parts.folder.value = view.folder;
    athanor.fill(parts.said);
    parts.body.hidden = !view.pictures.length;
    data.buildTools();
    data.changed();
    lookCloser(view);
  }
  data.reload = () => read(state.view.folder);

  /** Copies, damage and softness need every pixel: asked for piece by piece. */
  async function lookCloser(view) {
    let next = 0;
    try {
      while (next !== null) {
        const found = await athanor.api(`data/closer?${new URLSearchParams({ folder: view.folder, start: next })}`);
        if (state.view !== view) return;
        next = found.next;
        state.looked = { done: next === null ? found.total : next, total: found.total, ready: next === null };
        if (next === null) takeProblems(found.problems);
        drawHead();
      }
    } catch (error) {
      if (state.view === view) athanor.say(...(error.problems || [String(error)]));
    }
  }

  function takeProblems(problems) {
    for (const [file, found] of Object.entries(problems)) {
      const picture = state.byFile.get(file);
      if (!picture) continue;
      for (const each of found) {
        picture.kinds.add(each.kind);
        if (each.of) picture.of = each.of;
        if (each.why) picture.why = each.why;
      }
    }
    data.changed();
  }

  // ---- drawing

  /** After anything changed: counts, chips, tags and the grid. `grid` false leaves the cards as they are. */
  data.changed = function (grid = true) {
    drawHead();
    drawChips();
    drawOffer();
    data.drawTags();
    data.drawTargets();
    if (grid) data.drawGrid();
  };

  function drawHead() {
    const view = state.view, captioned = view.pictures.filter((picture) => picture.caption).length;
    const looking = state.looked && !state.looked.ready ? t("looking closer: {0} of {1} …", state.looked.done, state.looked.total) : "";
    const troubled = view.pictures.filter((picture) => picture.kinds.size).length;
    const judged = looking || (!state.looked ? t("looking closer …") : troubled ? t("{0} to look at", troubled) : t("nothing wrong found"));
    const resolution = h("input", { type: "number", class: "athanor-number", min: 64, max: 4096, step: 64, value: view.resolution, "aria-label": t("Resolution that pictures are cut for"),
      onchange: (event) => { state.resolution = Number(event.target.value) || null; athanor.busy(event.target, data.reload); } });
    athanor.fill(parts.head, h("div", { class: "athanor-datahead" },
      h("div", {}, h("h3", {}, view.folder.split(/[\\/]/).filter(Boolean).slice(-2).join(" / ")),
        h("p", { class: "athanor-quiet" }, !view.pictures.length ? t("There is no picture in this folder.") : `${data.pictures(view.pictures.length)} · ${t("{0} with captions", captioned)} · ${judged}`),
        view.notes.map((note) => h("p", { class: "athanor-quiet" }, athanor.said(note))),
        view.left_out ? h("p", { class: "athanor-quiet" }, t("{0} further pictures are not shown.", view.left_out)) : ""),
      h("label", { class: "athanor-inline" }, t("cut for"), resolution, "px"),
      view.undo ? h("button", { type: "button", onclick: (event) => undo(event.currentTarget), title: view.undo }, t("Undo: {0}", view.undo)) : "",
      h("button", { type: "button", class: "athanor-primary", disabled: !view.pictures.length, onclick: () => athanor.useFolder(view.folder, data.trigger()) }, t("Train on these"))));
  }

  function chip(text, number, pressed, press, kind) {
    return h("button", { type: "button", class: `athanor-chip ${kind || ""}`, "aria-pressed": String(pressed), onclick: press }, text, h("small", {}, ` ${number}`));
  }

  function drawChips() {
    const all = state.view.pictures, only = (changes) => { Object.assign(state, { kind: "", bucket: "" }, changes); data.changed(); };
    const buckets = new Map();
    for (const bucket of all.map(data.bucketOf).filter(Boolean)) buckets.set(bucket, (buckets.get(bucket) || 0) + 1);
    const kinds = Object.keys(KINDS).map((kind) => [kind, all.filter((picture) => picture.kinds.has(kind)).length]).filter(([, number]) => number);
    athanor.fill(parts.chips,
      chip(t("All"), all.length, !state.kind && !state.bucket, () => only({})),
      kinds.map(([kind, number]) => chip(t(KINDS[kind]), number, state.kind === kind, () => only(state.kind === kind ? {} : { kind }), "athanor-trouble")),
      buckets.size ? h("span", { class: "athanor-quiet athanor-between" }, t("Buckets:"), athanor.help(t("Pictures of about the same shape are cut to one size, so that they can be shown together."))) : "",
      [...buckets].sort((one, other) => other[1] - one[1]).map(([bucket, number]) =>
        chip(bucket, number, state.bucket === bucket, () => only(state.bucket === bucket ? {} : { bucket }))));
  }

  // ---- captions for a folder without any

  function drawOffer() {
    const usable = state.view.pictures.filter((picture) => !picture.kinds.has("broken"));
    if (!usable.length || usable.some((picture) => picture.caption)) { athanor.fill(parts.offer); parts.offered = ""; return; }
    if (parts.offered === state.view.folder || !purposes) return; // keep what was typed
    parts.offered = state.view.folder;
    const purpose = h("select", { "aria-label": t("What they show"), onchange: show }, Object.entries(purposes).map(([value, each]) => h("option", { value }, t(each.title))));
    const trigger = h("input", { type: "text", value: data.trigger(), placeholder: t("trigger word"), "aria-label": t("Trigger word"), oninput: show });
    const kind = h("input", { type: "text", placeholder: t("kind, such as woman, dog or toy"), "aria-label": t("Kind of thing"), oninput: show });
    const sentence = () => purposes[purpose.value].caption.replace("{trigger}", () => trigger.value.trim())
      .replace("{class}", () => kind.value.trim() || purposes[purpose.value].class).replace(/\s+/g, " ").trim();
    const write = h("button", { type: "button", class: "athanor-primary", onclick: () => {
      data.parts.trigger.value = trigger.value;
      data.write(write, t("first captions"), usable.map((picture) => [picture, sentence()]));
    } });
    function show() {
      write.disabled = !trigger.value.trim();
      write.textContent = trigger.value.trim() ? t("Write “{0}” for {1}", sentence(), data.pictures(usable.length)) : t("Write captions");
    }
    athanor.fill(parts.offer, h("div", { class: "athanor-box athanor-offer" },
      h("p", {}, t("None of these pictures has a caption. A short one is better than none: the trigger word and what kind of thing it is.")),
      h("div", { class: "athanor-row" }, purpose, trigger, kind, write)));
    show();
  }

  // ---- changing

  /** Writes captions: [[picture, text], …]; the ones that stay as they are, are left out. */
  data.write = async function (button, label, pairs) {
    const edits = pairs.filter(([picture, text]) => text !== (picture.caption || ""))
      .map(([picture, text]) => ({ file: picture.file, text, was: picture.caption }));
    if (!edits.length) { athanor.say(t("Nothing to change.")); return; }
    await athanor.busy(button, async () => {
      const done = await athanor.api("data/captions", { folder: state.view.folder, label, edits });
      for (const edit of edits) data.took(state.byFile.get(edit.file), edit.text);
      state.view.undo = done.undo;
      data.changed();
      athanor.say(done.saved === 1 ? t("1 caption written.") : t("{0} captions written.", done.saved));
    });
  };

  /** The page's own memory of a caption that was written. */
  data.took = function (picture, text) {
    picture.caption = text.trim().replace(/\s+/g, " ");
    const some = state.view.pictures.some((each) => each.caption);
    for (const each of state.view.pictures) each.kinds[some && !each.caption ? "add" : "delete"]("caption");
  };

  data.setAside = async function (button) {
    const files = [...state.selected];
    await athanor.busy(button, async () => {
      await athanor.api("data/aside", { folder: state.view.folder, files, label: t("{0} set aside", data.pictures(files.length)) });
      await data.reload();
      athanor.say(t("{0} moved into the hidden folder .set-aside; “Undo” brings them back.", data.pictures(files.length)));
    });
  };

  async function undo(button) {
    await athanor.busy(button, async () => {
      const done = await athanor.api("data/undo", { folder: state.view.folder });
      await data.reload();
      athanor.say(t("Undone: {0}", done.label), ...(done.kept.length ? [t("Changed since, and left as it is: {0}", done.kept.slice(0, 4).join(", "))] : []));
    });
  }

  // ---- dropping

  function dropPlace() {
    parts.into = h("input", { type: "text", placeholder: t("my pictures"), "aria-label": t("Name of the folder that dropped pictures are copied into") });
    const place = athanor.dropPlace(t("Drop pictures here, or a folder of them with captions, or click to choose. They are copied."), t("Choose pictures"),
      "image/*,.txt,.caption", true, upload);
    parts.dropSaid = place.querySelector("span");
    return h("div", { class: "athanor-dropping" }, place, h("label", { class: "athanor-inline" }, t("into the folder"), parts.into));
  }

  async function upload(files, dropped) {
    const ours = state.view && state.view.ours ? state.view.folder.split(/[\\/]/).filter(Boolean).pop() : "";
    const into = parts.into.value.trim() || (!dropped && ours) || await athanor.freeFolder(dropped || t("my pictures")), rest = parts.dropSaid.textContent;
    const { folder, refused } = await athanor.copyFiles(files, into, (text) => { parts.dropSaid.textContent = text; });
    parts.dropSaid.textContent = rest;
    if (folder) {
      await open(folder);
      listFolders();
    }
    athanor.fill(parts.said, athanor.problems(refused.slice(0, 8)), refused.length > 8 ? h("p", {}, t("and {0} more", refused.length - 8)) : "");
  }

  athanor.screens.data = { build, shown };
  athanor.openFolder = (folder) => { athanor.show("data"); open(folder); };
})();
