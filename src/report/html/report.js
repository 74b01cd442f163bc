"use strict";
// The browser of questions: filters, and cards that are made as they come into view.
(() => {
  const { questions, videos } = JSON.parse(document.getElementById("data").textContent);
  const CHUNK = 20;
  const OUTCOMES = {
    fixed: "fixed", broken: "broken", wrong: "wrong both times", right: "right both times",
  };
  const FORMATS = { mc: "multiple choice", ff: "freeform" };
  const $ = (id) => document.getElementById(id);
  const list = $("list");
  const filters = ["format", "outcome", "group", "source"];
  let found = [];
  let shown = 0;
  const end = new IntersectionObserver((seen) => {
    if (seen.some((entry) => entry.isIntersecting)) more();
  }, { rootMargin: "600px" });

  const element = (tag, className, text) => {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  };

  const text = (q) =>
    [q.id, q.question, q.gold, q.before.response, q.after.response].join("\n").toLowerCase();
  const texts = questions.map(text);

  function options(key, names) {
    const counts = new Map();
    for (const q of questions) counts.set(q[key], (counts.get(q[key]) || 0) + 1);
    const select = $(key);
    select.append(new Option("all", ""));
    const known = names ? Object.keys(names) : [...counts.keys()].sort();
    for (const value of known) {
      if (counts.has(value)) {
        const name = names ? names[value] : value;
        select.append(new Option(`${name} (${counts.get(value).toLocaleString("en")})`, value));
      }
    }
    select.closest("label").hidden = counts.size < 2;
    select.addEventListener("change", filter);
  }

  function filter() {
    const wanted = filters.map((key) => [key, $(key).value]).filter(([, value]) => value);
    const word = $("text").value.trim().toLowerCase();
    found = questions.filter((q, i) =>
      wanted.every(([key, value]) => q[key] === value) && (!word || texts[i].includes(word)));
    const n = (x) => x.toLocaleString("en");
    $("count").textContent = `${n(found.length)} of ${n(questions.length)} answers`;
    list.replaceChildren();
    shown = 0;
    more();
    const state = new URLSearchParams(wanted);
    if (word) state.set("text", word);
    history.replaceState(null, "", state.size ? `#${state}` : location.pathname + location.search);
  }

  function more() {
    const next = found.slice(shown, shown + CHUNK).map(card);
    list.append(...next);
    shown += next.length;
    // Observed anew, the end says again whether it is in view.
    end.disconnect();
    if (shown < found.length) end.observe($("end"));
  }

  function card(q) {
    const made = element("article", `card ${q.outcome}`);
    made.dataset.id = q.id;
    const head = element("header");
    const video = videos[q.video];
    head.append(
      element("span", "chip", OUTCOMES[q.outcome]),
      element("span", "hint", `${q.id} · ${FORMATS[q.format]} · ${q.group}`),
    );
    made.append(head);
    if (video.strip || video.href) made.append(clip(video));
    made.append(element("p", "question", q.question));
    const choices = q.choices.length > 0 && q.format === "mc";
    made.append(choices ? table(q) : element("p", "gold", `Right answer: ${q.gold}`));
    for (const stage of ["before", "after"]) made.append(answer(stage, q[stage]));
    return made;
  }

  function answer(stage, a) {
    const line = element("p", "answer");
    const mark = element("span", a.correct ? "yes" : "no", a.correct ? "✓" : "✗");
    // There is no response where the letters' probabilities decide.
    const said = a.response.trim() || a.extracted;
    line.append(mark, ` ${stage}: `, element("q", "", said || "(nothing)"));
    if (a.extracted === null) line.append(element("span", "hint", " no answer found"));
    else if (a.extracted !== said) {
      line.append(element("span", "hint", ` read as ${a.extracted}`));
    }
    return line;
  }

  /* The choices, with each letter's probability before and after. */
  function table(q) {
    const made = element("table", "choices");
    const letters = q.after.letters || q.before.letters;
    if (letters) {
      const head = made.createTHead().insertRow();
      head.append(element("th"), element("th"), element("th", "n", "before"), element("th", "n", "after"));
    }
    const body = made.createTBody();
    q.choices.forEach((choice, i) => {
      const row = body.insertRow();
      const letter = String.fromCharCode(65 + i);
      row.append(element("td", "", letter));
      row.append(element("td", choice === q.gold ? "right" : "", choice));
      if (choice === q.gold) row.title = "the right answer";
      if (!letters) return;
      for (const stage of ["before", "after"]) {
        const cell = element("td", "n bar");
        row.append(cell);
        // A chain of thought without a letter has no place to look at.
        if (!q[stage].letters) continue;
        const share = q[stage].letters[i] || 0;
        cell.style.setProperty("--share", `${(100 * share).toFixed(1)}%`);
        const taken = q[stage].extracted === letter;
        cell.append(element("span", taken ? "taken" : "", `${(100 * share).toFixed(1)} %`));
      }
    });
    return made;
  }

  /* Frames side by side; one after the other, or the video itself, where asked for. */
  function clip(video) {
    const made = element("figure", "clip");
    const stage = element("div", "stage");
    const strip = video.strip;
    const showStrip = () => {
      stop();
      if (!strip) return stage.replaceChildren(element("p", "hint", "no frames at hand"));
      const image = element("img", "strip");
      Object.assign(image, {
        src: strip.src, alt: `${strip.frames} frames of ${video.name}`,
        loading: "lazy", decoding: "async",
      });
      stage.replaceChildren(image);
    };
    let timer = 0;
    const stop = () => { clearInterval(timer); timer = 0; };
    const animate = () => {
      const frame = element("div", "frame");
      frame.style.aspectRatio = strip.aspect;
      // As wide as the height that style.css allows lets it be.
      frame.style.maxWidth = `${320 * strip.aspect}px`;
      frame.style.backgroundImage = `url(${strip.src})`;
      frame.style.backgroundSize = `${100 * strip.frames}% 100%`;
      let i = 0;
      const step = () => {
        if (!frame.isConnected && i) return stop();
        frame.style.backgroundPosition = `${strip.frames > 1 ? (100 * i) / (strip.frames - 1) : 0}% 0`;
        i = (i + 1) % strip.frames;
      };
      stage.replaceChildren(frame);
      step();
      timer = setInterval(step, 350);
    };
    const buttons = element("figcaption");
    const button = (label, act) => {
      const made = element("button", "", label);
      made.type = "button";
      made.addEventListener("click", act);
      buttons.append(made);
    };
    const plays = !strip || strip.frames > 1;
    if (strip && plays) button("play frames", () => (timer ? showStrip() : animate()));
    if (plays && video.href) button("play video", () => {
      stop();
      const player = element("video");
      Object.assign(player, { controls: true, autoplay: true, loop: true, muted: true });
      player.addEventListener("error", () => {
        showStrip();
        buttons.append(element("span", "hint", "the video is not where it was"));
      }, { once: true });
      player.src = video.href;
      stage.replaceChildren(player);
    });
    buttons.append(element("span", "hint", video.name));
    showStrip();
    made.append(stage, buttons);
    return made;
  }

  options("format", FORMATS);
  options("outcome", OUTCOMES);
  options("group");
  options("source");
  const state = new URLSearchParams(location.hash.slice(1));
  for (const key of [...filters, "text"]) if (state.has(key)) $(key).value = state.get(key);
  let waiting = 0;
  $("text").addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(filter, 120);
  });
  filter();
})();
