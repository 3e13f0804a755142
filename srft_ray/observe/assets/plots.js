"use strict";
// Elements are made by name and filled with text: nothing that a model wrote is ever read as HTML.
const SVG = "http://www.w3.org/2000/svg";
const COLOURS = ["#3a78cf", "#d1603d", "#3f9e68", "#9566bd", "#c0941f", "#2f9bab", "#b8527a", "#7d8794"];

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) node.setAttribute(name, String(value));
  for (const child of children.flat()) {
    if (child === null || child === undefined) continue;
    node.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return node;
}
function element(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}
function shape(tag, attributes, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}
function format(value) {
  if (value === null || value === undefined) return "–";
  if (typeof value !== "number") return String(value);
  if (Number.isInteger(value)) return String(value);
  return Math.abs(value) >= 1000 || Math.abs(value) < 0.001 ? value.toPrecision(3) : value.toFixed(3);
}
function table(heads, rows) {
  const cell = (tag) => (value) =>
    element(tag, typeof value === "number" ? { class: "number" } : {}, value instanceof Node ? value : format(value));
  return element("div", { class: "scroll" }, element("table", {},
    element("thead", {}, element("tr", {}, heads.map(cell("th")))),
    element("tbody", {}, rows.map((row) => element("tr", {}, row.map(cell("td")))))));
}
function ticks(low, high) {
  const rough = (high - low) / 4 || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
  const found = [];
  for (let value = Math.ceil(low / step) * step; value <= high; value += step) found.push(Number(value.toPrecision(12)));
  return found;
}
function extent(values) {
  const found = values.filter((value) => typeof value === "number");
  if (!found.length) return [0, 1];
  let low = Infinity, high = -Infinity;
  for (const value of found) { low = Math.min(low, value); high = Math.max(high, value); }
  const room = (high - low) * 0.05 || Math.abs(high) * 0.05 || 1;
  return [low - room, high + room];
}

// series: {name, points: [{x, y, low, high}]}; marks: {x, text}, drawn as vertical lines.
function lineChart(title, unit, series, marks) {
  const [width, height, left, bottom, top] = [480, 240, 52, 26, 10];
  const points = series.flatMap((one) => one.points).filter((point) => typeof point.y === "number");
  if (!points.length) return null;
  const xs = extent(points.map((point) => point.x));
  const ys = extent(points.flatMap((point) => [point.y, point.low, point.high]));
  const x = (value) => left + ((value - xs[0]) / (xs[1] - xs[0])) * (width - left - 8);
  const y = (value) => height - bottom - ((value - ys[0]) / (ys[1] - ys[0])) * (height - bottom - top);
  const root = shape("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title });
  for (const value of ticks(...ys)) {
    root.append(shape("line", { class: "axis", x1: left, x2: width - 8, y1: y(value), y2: y(value) }));
    root.append(shape("text", { x: left - 5, y: y(value) + 4, "text-anchor": "end" }, format(value)));
  }
  for (const value of ticks(...xs)) {
    if (!Number.isInteger(value)) continue;
    root.append(shape("text", { x: x(value), y: height - 8, "text-anchor": "middle" }, value));
  }
  for (const mark of marks || []) {
    if (mark.x < xs[0] || mark.x > xs[1]) continue;
    const place = { class: "mark", x1: x(mark.x), x2: x(mark.x), y1: top, y2: height - bottom };
    root.append(shape("line", place, shape("title", {}, mark.text)));
  }
  series.forEach((one, number) => root.append(...drawSeries(one, COLOURS[number % COLOURS.length], x, y)));
  return element("figure", { class: "card" }, element("h3", {}, unit ? `${title}, ${unit}` : title), root,
    series.length > 1 ? legend(series.map((one) => one.name)) : null);
}
function drawSeries(one, colour, x, y) {
  const drawn = one.points.filter((point) => typeof point.y === "number");
  const path = drawn.map((point, place) => `${place ? "L" : "M"}${x(point.x)},${y(point.y)}`).join("");
  const nodes = [shape("path", { d: path, fill: "none", stroke: colour, "stroke-width": 1.8 })];
  for (const point of drawn) {
    if (typeof point.low === "number" && typeof point.high === "number") {
      const bar = { x1: x(point.x), x2: x(point.x), y1: y(point.low), y2: y(point.high), stroke: colour };
      nodes.push(shape("line", bar));
    }
    if (drawn.length > 150) continue;
    const text = `${one.name}, step ${point.x}: ${format(point.y)}`;
    nodes.push(shape("circle", { cx: x(point.x), cy: y(point.y), r: 2.6, fill: colour }, shape("title", {}, text)));
  }
  return nodes;
}
function legend(names) {
  return element("div", { class: "legend" }, names.map((name, number) => {
    const box = shape("svg", { viewBox: "0 0 10 10", width: 10, height: 10 });
    box.append(shape("rect", { width: 10, height: 10, fill: COLOURS[number % COLOURS.length] }));
    box.style.width = "10px";
    box.style.display = "inline-block";
    return element("span", {}, box, " ", name);
  }));
}
