const DATA = JSON.parse(document.getElementById("data").textContent);
const RUNS = DATA.runs;
const state = { view: "overview", run: 0, token: null };

function listen(node, event, action) {
  node.addEventListener(event, action);
  return node;
}
function choice(label, options, value, action) {
  const select = element("select", { "aria-label": label });
  options.forEach(([key, text]) => select.append(element("option", { value: key }, text)));
  select.value = String(value);
  listen(select, "change", () => action(select.value));
  return element("label", {}, label, select);
}
function chooseRun(redraw) {
  const options = RUNS.map((run, number) => [number, run.name]);
  return choice("run", options, state.run, (value) => { state.run = Number(value); redraw(); });
}

// ---- overview
const PANELS = [
  ["reward", "", ["reward/mean"]],
  ["entropy", "nats per token", ["entropy/rollout", "entropy/demo"]],
  ["loss of each term", "", ["loss/"]],
  ["weight of each term", "", ["weight/"]],
  ["response length", "tokens", ["length/mean"]],
  ["gradient norm", "", ["grad_norm"]],
  ["learner − engine log-prob", "nats", ["parity/abs_logprob_diff"]],
  ["duration of the phases of a step", "s", ["time/rollout_wait", "time/learner", "time/publish"]],
];
function keysOf(run, wanted) {
  const fits = (key) => wanted.some((name) => key === name || (name.endsWith("/") && key.startsWith(name)));
  return Object.keys(run.metrics).filter(fits);
}
function metricSeries(wanted) {
  return RUNS.flatMap((run) => keysOf(run, wanted).map((key) => ({
    name: RUNS.length > 1 ? `${run.name}: ${key}` : key,
    points: run.metrics.step.map((step, place) => ({ x: step, y: run.metrics[key][place] })),
  })));
}
function evaluationChart(set, title, unit, point) {
  return lineChart(`${set}: ${title}`, unit, RUNS.map((run) => ({
    name: run.name,
    points: run.evaluations.filter((record) => record.set === set).map((record) => ({ x: record.step, ...point(record) })),
  })), eventMarks());
}
function evaluationCharts() {
  const sets = [...new Set(RUNS.flatMap((run) => run.evaluations.map((record) => record.set)))];
  const accuracy = (record) => ({ y: record.avg, low: record.avg_low, high: record.avg_high });
  return [
    ...sets.map((set) => evaluationChart(set, "avg@k", "%", accuracy)),
    ...sets.map((set) => evaluationChart(set, "loss of demonstrations (held out)", "nats", (record) => ({ y: record.demo_loss }))),
  ];
}
function eventMarks() {
  return RUNS.flatMap((run) => run.events.filter((event) => event.step !== undefined)
    .map((event) => ({ x: event.step, text: `${event.kind}: ${event.message}` })));
}
function overview() {
  const marks = eventMarks();
  const charts = PANELS.map(([title, unit, keys]) => lineChart(title, unit, metricSeries(keys), marks));
  const others = [...new Set(RUNS.flatMap((run) => Object.keys(run.metrics)))].sort();
  const place = element("div", { class: "plots" });
  const show = (key) => place.replaceChildren(lineChart(key, "", metricSeries([key]), marks) || "");
  return [
    element("p", {}, RUNS.map((run) => runState(run))),
    element("h2", {}, "Evaluations, with 95 % intervals over prompts"),
    element("div", { class: "plots" }, evaluationCharts()), evaluationTable(),
    element("h2", {}, "Training"), element("div", { class: "plots" }, charts),
    element("div", { class: "filters" }, choice("any metric", [["", "choose"], ...others.map((key) => [key, key])], "", show)),
    place,
    element("h2", {}, "Events"), eventTable(),
    RUNS.map((run) => element("details", {}, element("summary", {}, `config of ${run.name}`), element("pre", {}, run.config))),
  ];
}
function runState(run) {
  const steps = (run.metrics.step || []).length;
  const text = run.finished ? "finished" : run.failure ? "failed" : "not finished";
  return element("div", { class: `card ${run.finished ? "good" : "bad"}` }, `${run.name}: ${text}, ${steps} steps`,
    run.failure ? element("pre", {}, run.failure) : null);
}
function evaluationTable() {
  const rows = RUNS.flatMap((run) => run.evaluations.map((record) => [run.name, record.set, record.step,
    `${format(record.avg)} [${format(record.avg_low)}, ${format(record.avg_high)}]`,
    `${format(record.pass)} [${format(record.pass_low)}, ${format(record.pass_high)}]`,
    record.maj, record.length, record.truncated, record.unanswered, record.prompts, record.samples]));
  return table(["run", "set", "step", "avg@k, %", "pass@k, %", "maj@k, %", "tokens", "truncated", "no answer", "prompts", "k"], rows);
}
function eventTable() {
  const rows = RUNS.flatMap((run) => run.events.map((event) =>
    [run.name, new Date(event.time * 1000).toISOString().slice(0, 19), event.kind, event.message]));
  return rows.length ? table(["run", "time (UTC)", "kind", "what"], rows) : element("p", { class: "note" }, "None.");
}

// ---- groups
const filters = { step: "", verdict: "", reward: "", text: "", count: 12 };
function groupsView() {
  const place = element("div", {});
  const run = RUNS[state.run];
  const steps = [...new Set(run.groups.shown.map((group) => group.step))];
  const verdicts = [...new Set(run.groups.shown.flatMap((group) => group.completions.map((one) => one.verdict)))].sort();
  const redraw = () => place.replaceChildren(...groupCards(run, redraw));
  const set = (key) => (value) => { filters[key] = value; filters.count = 12; redraw(); };
  const search = element("input", { type: "search", "aria-label": "text" });
  search.value = filters.text;
  listen(search, "input", () => set("text")(search.value));
  redraw();
  return [
    element("p", { class: "note" }, `${run.groups.steps} steps in the ledger. ${DATA.rule}`),
    element("div", { class: "filters" }, chooseRun(draw),
      choice("step", [["", "all"], ...steps.map((step) => [step, step])], filters.step, set("step")),
      choice("with verdict", [["", "any"], ...verdicts.map((name) => [name, name])], filters.verdict, set("verdict")),
      choice("rewards", [["", "any"], ["mixed", "mixed"], ["right", "all right"], ["wrong", "all wrong"]], filters.reward, set("reward")),
      element("label", {}, "text", search)),
    place,
  ];
}
function matches(group) {
  const rollouts = group.completions.filter((one) => one.origin === "rollout");
  const right = rollouts.filter((one) => one.reward > 0.5).length;
  const kind = right === 0 ? "wrong" : right === rollouts.length ? "right" : "mixed";
  const text = filters.text.toLowerCase();
  const texts = [group.prompt, group.reference, ...group.completions.map((one) => one.text)];
  return (filters.step === "" || group.step === Number(filters.step))
    && (filters.verdict === "" || group.completions.some((one) => one.verdict === filters.verdict))
    && (filters.reward === "" || (rollouts.length > 0 && kind === filters.reward))
    && (text === "" || texts.some((one) => one.toLowerCase().includes(text)));
}
function groupCards(run, redraw) {
  const found = run.groups.shown.filter(matches);
  const cards = found.slice(0, filters.count).map((group) => groupCard(group));
  if (!found.length) cards.push(element("p", { class: "note" }, "No group fits."));
  if (found.length > filters.count) {
    const more = element("button", { type: "button" }, `show more of ${found.length} groups`);
    cards.push(listen(more, "click", () => { filters.count += 12; redraw(); }));
  }
  return cards;
}
function groupCard(group) {
  const attempts = group.attempt ? `, after ${group.attempt} discarded groups` : "";
  return element("section", { class: "card group" },
    element("h3", {}, `step ${group.step}, group ${group.id}${attempts}`),
    element("pre", {}, group.prompt), element("div", { class: "facts" }, `reference: ${group.reference}`),
    element("div", { class: "cards" }, group.completions.map((one) => completionCard(group, one))));
}
function completionCard(group, one) {
  const facts = [`reward ${format(one.reward)}`, `advantage ${format(one.advantage)}`, one.verdict,
    one.answer ? `answer ${one.answer}` : null, `version ${one.version}`, `${one.length} tokens`, one.finish,
    one.prefix ? `prefix ${one.prefix}` : null].filter((fact) => fact !== null);
  const look = listen(element("button", { type: "button" }, "tokens"), "click", () => {
    state.token = { group, one };
    state.view = "tokens";
    draw();
  });
  return element("div", { class: `card ${one.reward > 0.5 ? "good" : "bad"}` },
    element("div", { class: "facts" }, `${one.origin} ${one.sample}: ${facts.join(" · ")}`),
    element("pre", {}, one.text), look);
}

// ---- tokens
let colouring = "logprobs";
const DERIVED = {
  "learner − engine": (f) => f.learner_logprobs && f.logprobs && f.learner_logprobs.map((v, i) => v === null || f.logprobs[i] === null ? null : v - f.logprobs[i]),
};
function figuresOf(one) {
  const found = { ...one.figures };
  for (const [name, make] of Object.entries(DERIVED)) {
    const values = make(one.figures);
    if (values) found[name] = values;
  }
  for (const name of Object.keys(one.figures).filter((key) => key.startsWith("weight/"))) {
    found[`advantage × ${name}`] = one.figures[name].map((value) => value === null ? null : value * one.advantage);
  }
  return found;
}
function colourOf(value, low, high) {
  if (value === null || value === undefined) return "transparent";
  if (low < 0 && high > 0) {
    const share = Math.min(1, Math.abs(value) / Math.max(-low, high));
    return value < 0 ? `rgba(208, 72, 58, ${share * 0.75})` : `rgba(46, 140, 88, ${share * 0.75})`;
  }
  const distance = high <= 0 ? (high - value) / (high - low || 1) : (value - low) / (high - low || 1);
  return `rgba(208, 116, 40, ${Math.min(1, distance) * 0.75})`;
}
function tokensView() {
  const run = RUNS[state.run];
  const all = run.groups.shown.flatMap((group) => group.completions.map((one) => ({ group, one })));
  if (!all.length) return [element("p", { class: "note" }, "The ledger of this run has no rows.")];
  const chosen = all.find((found) => state.token && found.one === state.token.one) || all[0];
  const options = all.map(({ group, one }, place) =>
    [place, `step ${group.step}, group ${group.id}, ${one.origin} ${one.sample}: ${one.verdict}`]);
  const figures = figuresOf(chosen.one);
  const names = Object.keys(figures);
  if (!names.includes(colouring)) colouring = names[0] || "";
  const pick = (value) => { state.token = all[Number(value)]; draw(); };
  return [
    element("p", { class: "note" }, "Learner log-probs, entropies, ratios and weights are there if the run wrote them (ledger.tokens: true)."),
    element("div", { class: "filters" }, chooseRun(draw), choice("response", options, all.indexOf(chosen), pick),
      choice("colour", names.map((name) => [name, name]), colouring, (value) => { colouring = value; draw(); })),
    element("pre", {}, chosen.group.prompt),
    element("div", { class: "facts" }, `reward ${format(chosen.one.reward)} · advantage ${format(chosen.one.advantage)} · reference: ${chosen.group.reference}`),
    tokenText(chosen.one, figures),
  ];
}
function tokenText(one, figures) {
  const values = figures[colouring] || [];
  const [low, high] = extent(values);
  const spans = one.tokens.map((piece, place) => {
    const lines = Object.entries(figures).map(([name, found]) => `${name} ${format(found[place])}`);
    const span = element("span", { title: lines.join("\n") }, piece);
    span.style.backgroundColor = colourOf(values[place], low, high);
    return span;
  });
  return element("div", {}, element("div", { class: "facts" }, `${colouring}: ${format(low)} to ${format(high)}`),
    element("div", { class: "tokens card" }, spans));
}

// ---- evaluation
const evaluation = { set: 0, kind: "all", prompt: null, other: -1, count: 200 };
function evaluationView() {
  const run = RUNS[state.run];
  if (!run.sets.length) return [chooseRun(draw), element("p", { class: "note" }, "This run has no evaluation ledger.")];
  const set = run.sets[Math.min(evaluation.set, run.sets.length - 1)];
  const against = RUNS[evaluation.other];
  const twin = against && against.sets.find((other) => other.name === set.name);
  const change = (key, kind) => (value) => { evaluation[key] = kind(value); evaluation.prompt = null; draw(); };
  const rivals = [[-1, "its own first evaluation"], ...RUNS.map((other, number) => [number, other.name]).filter(([n]) => n !== state.run)];
  return [
    element("p", { class: "note" }, DATA.rule),
    element("div", { class: "filters" }, chooseRun(draw),
      choice("set", run.sets.map((one, number) => [number, one.name]), run.sets.indexOf(set), change("set", Number)),
      choice("against", rivals, evaluation.other, change("other", Number)),
      choice("prompts", [["all", "all"], ["better", "became right"], ["worse", "became wrong"], ["never", "never right"]], evaluation.kind, change("kind", String))),
    promptTable(set, twin),
    element("div", { class: "cards" }, shownPrompts(set)),
  ];
}
function promptTable(set, twin) {
  const last = set.averages.length - 1;
  const base = (place) => {
    if (!twin) return set.averages[0][place];
    const there = twin.prompts.indexOf(set.prompts[place]);
    return there < 0 ? null : twin.averages[twin.averages.length - 1][there];
  };
  const kinds = {
    all: () => true,
    better: (place) => base(place) <= 0.5 && set.averages[last][place] > 0.5,
    worse: (place) => base(place) > 0.5 && set.averages[last][place] <= 0.5,
    never: (place) => set.averages.every((found) => !found[place]),
  };
  const places = set.prompts.map((_, place) => place).filter(kinds[evaluation.kind]);
  const shown = new Set(set.shown.map((prompt) => prompt.id));
  const rows = places.slice(0, evaluation.count).map((place) => {
    const number = set.prompts[place];
    const link = listen(element("button", { type: "button" }, number), "click", () => { evaluation.prompt = number; draw(); });
    return [shown.has(number) ? link : number, ...(twin ? [base(place)] : []), ...set.averages.map((found) => found[place])];
  });
  const heads = ["prompt", ...(twin ? ["the other run"] : []), ...set.steps.map((step) => `step ${step}`)];
  const more = places.length > evaluation.count ? `, the first ${evaluation.count} of them` : "";
  return element("details", { open: "" }, element("summary", {}, `${places.length} prompts${more}: average of each`), table(heads, rows));
}
function shownPrompts(set) {
  const chosen = set.shown.filter((prompt) => evaluation.prompt === null || prompt.id === evaluation.prompt);
  return chosen.slice(0, 12).map((prompt) => element("section", { class: "card" },
    element("h3", {}, `prompt ${prompt.id}`), element("pre", {}, prompt.prompt),
    element("div", { class: "facts" }, `reference: ${prompt.reference}`),
    prompt.responses.map((one) => element("div", { class: `card ${one.correct ? "good" : "bad"}` },
      element("div", { class: "facts" }, `step ${one.step}, sample ${one.sample} · ${one.verdict} · ${one.reason} · answer ${one.answer}`),
      element("pre", {}, one.text)))));
}

// ---- comparison
function comparisonView() {
  const sets = [...new Set(RUNS.flatMap((run) => run.evaluations.map((record) => record.set)))];
  const ofModel = (run, record) => run.model_step === null || record.step === run.model_step;
  const final = (run, name) => run.evaluations.filter((record) => record.set === name && ofModel(run, record)).pop();
  const methods = [...new Set(RUNS.map((run) => run.about.method))];
  const rows = methods.map((method) => {
    const runs = RUNS.filter((run) => run.about.method === method);
    return [method, runs.map((run) => run.about.seed).join(", "), ...sets.map((name) => {
      const values = runs.map((run) => final(run, name)).filter((record) => record).map((record) => record.avg);
      return seedFigure(values);
    })];
  });
  const pairs = DATA.comparisons.map((one) => [one.second, one.first, one.set, one.prompts,
    `${format(100 * one.mean)} [${format(100 * one.low)}, ${format(100 * one.high)}]`, one.p, one.holm, `${one.better} / ${one.worse}`]);
  return [
    element("h2", {}, "Methods and seeds: avg@k of the trained model in percent, mean ± standard deviation over seeds"),
    table(["method", "seeds", ...sets], rows),
    element("h2", {}, "Runs against the first one, paired over prompts"),
    pairs.length ? table(["run", "against", "set", "prompts", "difference, points [95 %]", "p", "p (Holm)", "prompts better / worse"], pairs)
      : element("p", { class: "note" }, "Pass several runs to compare them: srft-ray report RUN RUN."),
    element("p", { class: "note" }, "p-values are of one seed each: what differs between seeds is not in them."),
  ];
}
function seedFigure(values) {
  if (!values.length) return "–";
  const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
  if (values.length < 2) return format(mean);
  const variance = values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / (values.length - 1);
  return `${format(mean)} ± ${format(Math.sqrt(variance))}`;
}

// ---- the page
const VIEWS = { overview, groups: groupsView, tokens: tokensView, evaluation: evaluationView, comparison: comparisonView };
function draw() {
  const tabs = Object.keys(VIEWS).map((name) => listen(
    element("button", { type: "button", role: "tab", id: `tab-${name}`, "aria-selected": String(name === state.view) }, name),
    "click", () => { state.view = name; draw(); }));
  document.getElementById("tabs").replaceChildren(...tabs);
  document.getElementById("view").replaceChildren(...VIEWS[state.view]().flat().filter((node) => node));
}
draw();
