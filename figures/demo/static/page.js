// Four papers to draw on, three bars a network, two curves. Every change of a drawing or of k asks the server again;
// while an answer is under way further changes wait, and only the latest of them is asked.

const LETTERS = ["A", "B", "C"];
const SIZE = 28; // pixels of what the networks see
const PEN = 5 / 105; // of the paper's width, as in Omniglot
const SVG = "http://www.w3.org/2000/svg";
const $ = (id) => document.getElementById(id);

// A drawing is a list of strokes, each a list of [x, y] in [0, 1], or an image's text: 28 × 28 times 1 (ink) or 0.
const isEmpty = (drawing) => drawing.length === 0;

function paintPixels(canvas, pixels) {
  const context = canvas.getContext("2d"), unit = canvas.width / SIZE;
  context.clearRect(0, 0, canvas.width, canvas.height);
  context.fillStyle = "#15181d";
  [...pixels].forEach((pixel, i) => {
    const left = Math.round((i % SIZE) * unit), top = Math.round(Math.floor(i / SIZE) * unit);
    if (pixel === "1") context.fillRect(left, top, Math.ceil(unit), Math.ceil(unit));
  });
}

function paintStrokes(canvas, strokes) {
  const context = canvas.getContext("2d"), width = canvas.width;
  context.clearRect(0, 0, width, width);
  Object.assign(context, { strokeStyle: "#15181d", lineWidth: PEN * width, lineCap: "round", lineJoin: "round" });
  for (const stroke of strokes) {
    context.beginPath();
    stroke.forEach(([x, y], i) => context[i ? "lineTo" : "moveTo"](x * width, y * width));
    if (stroke.length === 1) context.lineTo(stroke[0][0] * width, stroke[0][1] * width);
    context.stroke();
  }
}

class Pad {
  constructor(parent, letter, name) {
    const element = $("pad").content.cloneNode(true);
    [this.paper, this.seen] = element.querySelectorAll("canvas");
    element.querySelector("b").textContent = letter;
    this.button = element.querySelector("button");
    this.button.ariaLabel = `Clear ${name}`;
    this.paper.ariaLabel = `${name}: canvas to draw on`;
    this.seen.ariaLabel = `${name} as the networks see it`;
    parent.append(element);
    this.drawing = [];
    this.pen = { at: [0.5, 0.5], down: false, shown: false }; // the keyboard's
    this.button.addEventListener("click", () => this.set([]));
    this.paper.addEventListener("pointerdown", (event) => this.begin(event));
    this.paper.addEventListener("pointermove", (event) => this.go(event));
    for (const end of ["pointerup", "pointercancel"]) this.paper.addEventListener(end, () => (this.pointer = null));
    this.paper.addEventListener("keydown", (event) => this.key(event));
    this.paper.addEventListener("blur", () => this.lift());
    new ResizeObserver(() => this.paint()).observe(this.paper);
  }

  set(drawing) {
    this.drawing = drawing;
    this.pen.down = false;
    this.changed();
  }

  changed() {
    this.paint();
    ask();
  }

  paint() {
    const width = Math.round(this.paper.clientWidth * devicePixelRatio);
    if (this.paper.width !== width) this.paper.width = this.paper.height = width;
    (typeof this.drawing === "string" ? paintPixels : paintStrokes)(this.paper, this.drawing);
    if (isEmpty(this.drawing)) this.seen.getContext("2d").clearRect(0, 0, SIZE, SIZE);
    if (this.pen.shown) this.paintPen();
  }

  paintPen() {
    const context = this.paper.getContext("2d"), [x, y] = this.pen.at.map((place) => place * this.paper.width);
    Object.assign(context, { strokeStyle: "#d55e00", lineWidth: 2 * devicePixelRatio });
    context.beginPath();
    context.arc(x, y, (this.pen.down ? 0.6 : 1) * PEN * this.paper.width, 0, 2 * Math.PI);
    context.stroke();
  }

  start(point) {
    if (typeof this.drawing === "string") this.drawing = []; // a sample makes room for a drawing
    this.drawing.push([point]);
    this.changed();
  }

  extend(point) {
    this.drawing.at(-1).push(point);
    this.changed();
  }

  place(event) {
    const box = this.paper.getBoundingClientRect();
    const clip = (value) => Math.round(1e4 * Math.min(1, Math.max(0, value))) / 1e4;
    return [clip((event.clientX - box.left) / box.width), clip((event.clientY - box.top) / box.height)];
  }

  begin(event) {
    if (!event.isPrimary || event.button > 0) return;
    this.pointer = event.pointerId;
    this.paper.setPointerCapture(event.pointerId);
    this.lift();
    this.start(this.place(event));
  }

  go(event) {
    if (this.pointer !== event.pointerId) return;
    const events = event.getCoalescedEvents?.() ?? [];
    for (const each of events.length ? events : [event]) this.drawing.at(-1).push(this.place(each));
    this.changed();
  }

  lift() {
    this.pen.down = this.pen.shown = false;
    this.paint();
  }

  key(event) {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const move = moves[event.key], far = (event.shiftKey ? 4 : 1) / SIZE;
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    if (move) {
      this.pen.at = this.pen.at.map((place, i) => Math.min(1, Math.max(0, place + far * move[i])));
    } else if (event.key === " ") {
      this.pen.down = !this.pen.down;
    } else if (event.key === "Delete" || event.key === "Backspace") {
      this.set([]);
    } else return;
    event.preventDefault();
    this.pen.shown = true;
    if (move && this.pen.down) this.extend(this.pen.at);
    else if (event.key === " " && this.pen.down) this.start(this.pen.at);
    else this.paint();
  }
}

class Card {
  constructor(name, accuracy) {
    const element = $("network").content.cloneNode(true), article = element.querySelector("article");
    article.classList.add(classOf(name));
    article.ariaLabel = name;
    element.querySelector("h3").textContent = name;
    element.querySelector(".about").textContent = accuracy;
    this.rows = LETTERS.map((letter) => {
      const row = element.querySelector("tbody").insertRow();
      const [head, track, bar] = ["th", "div", "div"].map((name) => document.createElement(name));
      head.scope = "row";
      head.textContent = letter;
      track.className = "track";
      bar.className = "bar";
      track.append(bar);
      row.append(head);
      row.insertCell().append(track);
      return { row, bar, text: row.insertCell() };
    });
    $("networks").append(element);
    this.show(null);
  }

  show(probabilities) {
    const most = probabilities && Math.max(...probabilities);
    this.rows.forEach(({ row, bar, text }, i) => {
      const value = probabilities?.[i];
      row.className = probabilities && value === most ? "first" : "";
      bar.style.width = `${100 * (value ?? 0)}%`;
      text.textContent = probabilities ? percent(value) : "–";
    });
  }
}

const classOf = (name) => (name === "Reptile" ? "reptile" : "joint");
const percent = (value) => `${(100 * value).toFixed(value > 0.9995 || value < 0.0005 ? 0 : 1)} %`;

function svg(name, attributes, text = "") {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.textContent = text;
  $("curves").append(element);
}

function drawCurves(networks) {
  $("curves").replaceChildren();
  const [left, right, top, bottom] = [44, 622, 44, 360];
  const curves = Object.entries(networks ?? {}).map(([name, { losses }]) => [name, losses]);
  const steps = Math.max(1, (curves[0]?.[1].length ?? 2) - 1);
  const highest = Math.max(1.2, ...curves.flatMap(([, losses]) => losses));
  const x = (step) => left + ((right - left) * step) / steps, y = (loss) => bottom - ((bottom - top) * loss) / highest;
  const tick = highest > 6 ? 4 : highest > 3 ? 2 : highest > 1.5 ? 1 : 0.5;
  for (let loss = 0; loss <= highest; loss += tick) {
    svg("line", { class: "axis", x1: left, x2: right, y1: y(loss), y2: y(loss) });
    svg("text", { x: left - 10, y: y(loss) + 7, "text-anchor": "end" }, String(loss));
  }
  for (const step of [0, steps]) svg("text", { x: x(step), y: bottom + 30, "text-anchor": "middle" }, String(step));
  svg("text", { x: (left + right) / 2, y: bottom + 30, "text-anchor": "middle" }, "steps taken");
  curves.forEach(([name], i) => svg("text", { class: `label ${classOf(name)}`, x: left + 110 * i, y: 20 }, name));
  for (const [name, losses] of [...curves].reverse()) { // Reptile's on top
    const points = losses.map((loss, step) => `${x(step).toFixed(1)},${y(loss).toFixed(1)}`);
    svg("polyline", { class: `curve ${classOf(name)}`, points: points.join(" ") });
    if (losses.length === 1) svg("circle", { class: `dot ${classOf(name)}`, cx: x(0), cy: y(losses[0]), r: 6 });
  }
  const ends = curves.map(([name, losses]) => `${name} from ${losses[0].toFixed(2)} to ${losses.at(-1).toFixed(2)}`);
  $("curves").ariaLabel = `Loss curves: ${ends.join("; ") || "nothing to show yet"}`;
}

const pads = LETTERS.map((letter) => new Pad($("examples"), letter, `Example ${letter}`));
pads.push(new Pad($("query"), "?", "The one to classify"));
const cards = {};
let asking = false, again = false, firstSample = 0;

async function ask() {
  if (asking) {
    again = true;
    return;
  }
  asking = true;
  $("results").ariaBusy = "true";
  do {
    again = false;
    await show(pads.some((pad) => isEmpty(pad.drawing)) ? null : await answer());
  } while (again);
  asking = false;
  $("results").ariaBusy = "false";
}

async function answer() {
  const question = { drawings: pads.map((pad) => pad.drawing), steps: Number($("steps").value) };
  try {
    const response = await fetch("classify", { method: "POST", body: JSON.stringify(question) });
    if (response.ok) return await response.json();
    throw new Error(await response.text());
  } catch (error) {
    return { error: error instanceof TypeError ? "The server does not answer. Is it still running?" : error.message };
  }
}

function show(found) {
  $("error").hidden = !found?.error;
  $("error").textContent = found?.error ?? "";
  const networks = found?.networks;
  for (const [name, card] of Object.entries(cards)) card.show(networks?.[name].probabilities);
  drawCurves(networks);
  found?.seen?.forEach((pixels, i) => isEmpty(pads[i].drawing) || paintPixels(pads[i].seen, pixels));
  say(networks);
}

let saying;
function say(networks) {
  clearTimeout(saying); // spoken once the pen rests
  const missing = LETTERS.concat("the one to classify").filter((_, i) => isEmpty(pads[i].drawing));
  const verdicts = Object.entries(networks ?? {}).map(([name, { probabilities }]) => {
    const most = Math.max(...probabilities);
    return `${name} says ${LETTERS[probabilities.indexOf(most)]} (${percent(most)}).`;
  });
  const text = networks ? verdicts.join(" ") : missing.length ? `Still to draw: ${missing.join(", ")}.` : "";
  saying = setTimeout(() => ($("spoken").textContent = text), 300);
}

function thumbnail(pixels) {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = SIZE;
  paintPixels(canvas, pixels);
  return canvas;
}

function sampleButton(shelf, label, images, chosen) {
  const button = document.createElement("button");
  button.type = "button";
  button.ariaLabel = label;
  button.append(...images.map(thumbnail));
  button.addEventListener("click", chosen);
  shelf.append(button);
}

// The three examples, one of them again, and for who wants another of them again, all three.
function take(task) {
  task.examples.forEach((pixels, i) => pads[i].set(pixels));
  pads[3].set(task.again[Math.floor(3 * Math.random())]);
  $("hands").replaceChildren();
  task.again.forEach((pixels, i) => {
    sampleButton($("hands"), `${LETTERS[i]} by another hand, to classify`, [pixels], () => pads[3].set(pixels));
  });
  $("again").hidden = false;
}

async function showSamples() {
  const tasks = await (await fetch(`samples?first=${firstSample}`)).json();
  $("samples").replaceChildren();
  for (const task of tasks) {
    firstSample += 1;
    const label = `Sample ${firstSample}: three characters and one of them again`;
    sampleButton($("samples"), label, task.examples, () => take(task));
  }
}

$("steps").addEventListener("input", () => {
  $("k").textContent = $("steps").value;
  ask();
});
$("more").addEventListener("click", showSamples);

const about = await (await fetch("about")).json();
$("steps").max = about.most_steps;
$("origin").textContent = about.origin;
$("warning").textContent = about.warning;
$("warning").hidden = !about.warning;
for (const [name, accuracy] of Object.entries(about.networks)) cards[name] = new Card(name, accuracy);
drawCurves(null);
ask();
await showSamples();
