// Sentences that the trainers and our routes say come as finished English texts. The template that one was made of is
// found here, and its translation shown with the sentence's own values in it (extension/ui/sentences.py lists them).
"use strict";
(function () {
  const athanor = (window.athanor = window.athanor || {});
  const PLACE = /\{\d+\}/g, LEAST = 6; // letters of its own that a template must have to be recognised
  const MARK = "\u0001", HAN = /[\u4e00-\u9fff]/, WIDE = /[\u3000-\u303f\u4e00-\u9fff\uff00-\uffef]/;
  const has = (known, text) => Object.prototype.hasOwnProperty.call(known, text);
  let language = null, templates = [], remembered = new Map();

  const escaped = (text) => text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");

  /** The templates of the page's language, those with the most words of their own first. */
  function learn(known) {
    language = known;
    remembered = new Map();
    templates = Object.keys(known).filter((text) => /\{\d+\}/.test(text) && /[a-z]/.test(text))
      .map((text) => ({ text, own: text.replace(PLACE, ""), numbers: (text.match(PLACE) || []).map((each) => Number(each.slice(1, -1))) }))
      .filter((each) => each.own.replace(/[^a-z]/gi, "").length >= LEAST)
      .map((each) => ({ ...each, isSentence: /[.!?]$/.test(each.own), pattern: new RegExp(`^${each.text.split(PLACE).map(escaped).join("(.*?)")}$`, "s") }))
      .sort((one, other) => other.own.length - one.own.length);
  }

  /** "3 pictures", "a.png, b.png and 7 more", or a clause that is known; names and numbers stay as they are. */
  function value(known, text) {
    const counted = /^([\d.,]+) ([a-z ]+?)s?$/.exec(text), few = /^(.*) and (\d+) more$/s.exec(text);
    if (counted) {
      const one = `1 ${counted[2]}`, more = `{0} ${counted[2]}s`;
      if (counted[1] === "1" && has(known, one)) return known[one];
      if (has(known, more)) return athanor.t(more, counted[1]);
      if (has(known, `{0} ${counted[2]}`)) return athanor.t(`{0} ${counted[2]}`, counted[1]);
    }
    if (few) return athanor.t("{0} and {1} more", few[1], few[2]);
    if (!text.includes(" ")) return text;
    const said = has(known, text) ? known[text] : made(known, text, /[.!?]$/.test(text));
    return said || listed(known, text) || named(known, text) || aside(known, text) || text;
  }

  /** Something in brackets behind a clause: "read as GB18030 (a.txt and 4 more)"; empty where neither is known. */
  function aside(known, text) {
    const found = /^(.+?) \((.+)\)$/s.exec(text), both = found && [value(known, found[1]), value(known, found[2])];
    return found && (both[0] !== found[1] || both[1] !== found[2]) ? athanor.t("{0} ({1})", ...both) : "";
  }

  /** "a.png: the file is empty; b.png: it is damaged"; empty where nothing of it is known. */
  function listed(known, text) {
    const parts = text.split("; "), said = parts.map((part) => (parts.length > 1 ? value(known, part) : part));
    return said.some((part, place) => part !== parts[place]) ? said.join("; ") : "";
  }

  /** "a.png: it is damaged", a name (of a file, an option) with what is said of it; empty where nothing is known. */
  function named(known, text) {
    const found = /^((?:[A-Za-z]:)?[^:]{1,200}): (.+)$/s.exec(text);
    if (!found) return "";
    const name = value(known, found[1]), said = behind(known, found[2]);
    return name !== found[1] || said !== found[2] ? athanor.t("{0}: {1}", name, said) : "";
  }

  /** What stands behind a name: a sentence, or a clause with or without a full stop. */
  function behind(known, text) {
    const clause = text.endsWith(".") ? text.slice(0, -1) : text, said = whole(known, text) || value(known, clause);
    if (said === clause) return value(known, text);
    return clause === text || /[.!?\u3002]$/.test(said) ? said : athanor.t("{0}.", said);
  }

  /** Chinese letters stand beside each other without a blank, and beside Latin ones with one, where `MARK` says that a
   * translated value begins or ends. Names are left as they are. */
  function fitted(text) {
    return text.replace(new RegExp(` ?${MARK} ?`, "g"), (mark, at) => {
      const before = text[at - 1] || "", after = text[at + mark.length] || "";
      if (WIDE.test(before) && WIDE.test(after)) return "";
      return (HAN.test(before) && /\w/.test(after)) || (/\w/.test(before) && HAN.test(after)) ? " " : mark.replace(MARK, "");
    });
  }

  function made(known, text, isSentence) {
    for (const each of templates) {
      const found = each.isSentence === isSentence && each.pattern.exec(text);
      // A value that runs over the end of a sentence belongs to another template.
      if (!found || found.slice(1).some((part) => /[.!?] [A-Z]/.test(part))) continue;
      const values = [];
      each.numbers.forEach((number, place) => {
        const part = found[place + 1], said = value(known, part);
        values[number] = said === part ? part : MARK + said + MARK;
      });
      return fitted(athanor.t(each.text, ...values));
    }
    return "";
  }

  const whole = (known, text) => (has(known, text) ? known[text] : made(known, text, true));

  /** Sentence after sentence, the longest run of them that is known at a time. */
  function each(known, text) {
    const ends = [...text.matchAll(/[.!?] (?=\S)/g)].map((found) => found.index + 1).concat(text.length);
    for (const end of [...ends].reverse()) {
      const said = whole(known, text.slice(0, end));
      if (said) return said + (end < text.length ? between(said) + each(known, text.slice(end + 1)) : "");
    }
    const first = ends[0], label = named(known, text);
    if (label) return label;
    return first < text.length ? `${text.slice(0, first)} ${each(known, text.slice(first + 1))}` : value(known, text);
  }

  const between = (said) => (/[\u3000-\u303f\uff00-\uffef]$/.test(said) ? "" : " "); // full-width stops bring their own room

  /** What the server said, in the person's language as far as it is known. */
  athanor.said = function (text) {
    const known = window.localization || {}, sentence = String(text);
    if (known !== language) learn(known);
    if (!templates.length) return has(known, sentence) ? known[sentence] : sentence;
    if (!remembered.has(sentence)) remembered.set(sentence, each(known, sentence));
    return remembered.get(sentence);
  };
})();
