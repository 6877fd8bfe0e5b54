"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const root = document.getElementById("browser");
  const SIGN = { right: "✓", wrong: "✗", none: "–", failed: "!", absent: "" };
  const SAID = { right: "right", wrong: "wrong", none: "no answer found", failed: "failed", absent: "not asked" };
  const el = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) {
      if (key === "onclick" || key === "onchange") node[key] = value;
      else if (value !== undefined) node.setAttribute(key, value);
    }
    node.append(...children.filter((child) => child !== null && child !== undefined));
    return node;
  };
  const state = { task: 0, filter: "all", chosen: null, most: 200 };
  const rights = (question) => question.cells.filter((cell) => cell && cell.o !== "failed").map((cell) => cell.o === "right");
  const courses = (question, word) => question.cells.some((cell) => cell && cell.course && cell.course.includes(word));
  const FILTERS = {
    all: ["all questions", () => true],
    split: ["wirings disagree", (q) => new Set(rights(q)).size > 1],
    never: ["nobody was right", (q) => !rights(q).includes(true)],
    always: ["everybody was right", (q) => !rights(q).includes(false)],
    lost: ["a chain lost the answer", (q) => courses(q, "lost")],
    repaired: ["a chain put it right", (q) => courses(q, "put right")],
  };

  function bar() {
    const choose = (name, options, current, change) =>
      el("label", {}, name + " ", el("select", { onchange: (event) => change(event.target.value) },
        ...options.map(([value, text]) => el("option", String(value) === String(current) ? { value, selected: "" } : { value }, text))));
    const keys = ["right", "wrong", "none", "failed"].map((o) => el("span", { class: "key" }, el("span", { class: "sq " + o }, SIGN[o]), SAID[o]));
    return el("div", { class: "bar" },
      choose("task", data.tasks.map((task, i) => [i, `${task.name} (${task.questions.length})`]), state.task, (v) => { state.task = +v; state.chosen = null; draw(); }),
      choose("show", Object.entries(FILTERS).map(([k, [text]]) => [k, text]), state.filter, (v) => { state.filter = v; state.chosen = null; draw(); }),
      ...keys);
  }

  function grid() {
    const task = data.tasks[state.task];
    const head = el("tr", {}, el("th", { scope: "col" }, ""), ...data.wirings.map((name) => el("th", { scope: "col", title: name }, el("div", {}, name))));
    const kept = task.questions.map((question, index) => [question, index]).filter(([question]) => FILTERS[state.filter][1](question));
    const rows = kept.slice(0, state.most).map(([question, index]) =>
      el("tr", {}, el("th", { scope: "row", title: question.id }, `${index + 1} ${question.id}`), ...question.cells.map((cell, column) => {
        const o = cell ? cell.o : "absent";
        const chosen = state.chosen?.[0] === index && state.chosen?.[1] === column;
        const name = `${data.wirings[column]}, ${question.id}: ${SAID[o]}${cell && cell.course ? ", " + cell.course : ""}`;
        return el("td", {}, el("button", { class: "sq " + o + (chosen ? " chosen" : ""), title: name, "aria-label": name, disabled: cell ? undefined : "",
          onclick: (event) => choose(event.currentTarget, index, column) }, SIGN[o]));
      })));
    if (!rows.length) return el("p", { class: "note" }, "No question is of that kind.");
    const table = el("div", { class: "grid" }, el("table", {}, el("thead", {}, head), el("tbody", {}, ...rows)));
    if (kept.length <= state.most) return table;
    const more = el("button", { class: "tab", onclick: () => { state.most = Infinity; draw(); } }, `show all ${kept.length} questions`);
    return el("div", {}, table, el("p", {}, more));
  }

  // Only what changes is drawn anew: a large run has tens of thousands of squares.
  function choose(button, index, column) {
    root.querySelector(".chosen")?.classList.remove("chosen");
    button.classList.add("chosen");
    state.chosen = [index, column];
    document.getElementById("detail").replaceWith(detail());
    document.getElementById("detail").scrollIntoView({ block: "nearest" });
  }

  const verdict = (right, given) => el("span", { class: right ? "good" : "bad" }, given === null || given === undefined ? "no answer found" : `${right ? "right" : "wrong"}: ${given}`);

  function stage(part, index, several) {
    const facts = [el("strong", {}, `${several ? `stage ${index + 1}: ` : ""}${part.models}`), el("span", {}, part.role), el("span", {}, `${part.seconds} s, ${part.wrote} tokens`), verdict(part.right, part.given)];
    if (part.finish === "length") facts.push(el("span", { class: "bad" }, "cut short"));
    if (part.fusion) facts.push(el("span", {}, `${part.fusion.pieces} pieces: ${part.fusion.certified} certified, ${part.fusion.looked_up} looked up, ${part.fusion.uncertified} uncertified, ${part.fusion.drift} repairs`));
    const node = el("div", { class: "stage" }, el("div", {}, ...facts));
    if (part.text !== undefined) node.append(el("pre", {}, part.text || "(nothing)"));
    if (part.disagreements) {
      const list = part.disagreements.map(([piece, said, who, other]) => `after piece ${piece}: the group wrote ${JSON.stringify(said)}, ${who} would have written ${JSON.stringify(other)}`);
      node.append(el("details", {}, el("summary", {}, `${list.length} disagreements`), el("pre", {}, list.join("\n"))));
    }
    return node;
  }

  function detail() {
    const node = el("div", { id: "detail" });
    if (!state.chosen) return node;
    const [index, column] = state.chosen;
    const question = data.tasks[state.task].questions[index], cell = question.cells[column];
    node.append(el("h3", {}, `${data.wirings[column]} on ${question.id}`));
    if (question.text) node.append(el("pre", { class: "ask" }, question.text));
    node.append(el("p", {}, `Right answer: ${question.answer}. `, cell.o === "failed" ? `Failed: ${cell.error}` : `${SAID[cell.o][0].toUpperCase()}${SAID[cell.o].slice(1)} after ${cell.seconds} s; ${cell.course}.`));
    if (cell.judged) node.append(el("p", {}, `The judging model said: ${cell.judged}`));
    if (cell.stages) node.append(...cell.stages.map((part, i) => stage(part, i, cell.stages.length > 1)));
    else if (cell.text !== undefined) node.append(el("pre", { class: "ask" }, cell.text));
    return node;
  }

  function draw() {
    const old = root.querySelector(".grid"), top = old ? [old.scrollTop, old.scrollLeft] : [0, 0];
    root.replaceChildren(bar(), grid(), detail());
    const now = root.querySelector(".grid");
    if (now) { now.scrollTop = top[0]; now.scrollLeft = top[1]; }
  }
  draw();
})();
