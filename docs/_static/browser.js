// A network that learns on the page: xbp's training step, an ONNX file, in onnxruntime-web.
// All files are the site's own, in the folder that the page names.

const page = (name) => document.getElementById(`digits-${name}`);
const given = document.querySelector(".digits").dataset;
const files = new URL(given.files, document.baseURI).href;
const words = JSON.parse(given.words ?? "{}"); // sentences in the language of the page
const told = (text, ...values) =>
  (words[text] ?? text).replace(/\{(\d)\}/g, (_, place) => values[place]);
const SIDE = 28, PIXELS = SIDE * SIDE, NEW = ".new", OFTEN_READ = { willReadFrequently: true };

const state = {}; // all inputs that change from step to step, by name
const losses = [];
const taught = []; // [image, label] of the visitor's own drawings
let ort, about, digits, labels, step, inference, training = false, next = 0;

// --- files -------------------------------------------------------------------------------------

const fetched = async (name) => {
  const answer = await fetch(files + name);
  if (!answer.ok) throw new Error(`${name} is not there`);
  return answer;
};

// A safetensors file: eight bytes that count those of a JSON header, the header, the numbers.
function tensorsOf(buffer) {
  const length = Number(new DataView(buffer).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, length)));
  const kinds = {
    F32: ["float32", Float32Array], F64: ["float64", Float64Array], I64: ["int64", BigInt64Array],
  };
  const found = {};
  for (const [name, about] of Object.entries(header)) {
    if (name === "__metadata__") continue;
    const { dtype, shape, data_offsets: [from, to] } = about, [kind, array] = kinds[dtype];
    const numbers = new array(buffer.slice(8 + length + from, 8 + length + to));
    found[name] = new ort.Tensor(kind, numbers, shape);
  }
  return found;
}

async function load() {
  ort = await import(`${files}ort.wasm.min.mjs`);
  ort.env.wasm.wasmPaths = files;
  ort.env.wasm.numThreads = 1; // more would need headers that a plain server does not send
  about = await (await fetched("about.json")).json();
  const bytes = new Uint8Array(await (await fetched("digits.bin")).arrayBuffer());
  const count = about.learned + about.unseen;
  digits = new Float32Array(count * PIXELS);
  for (let i = 0; i < digits.length; i++) digits[i] = standardized(bytes[i]);
  labels = bytes.slice(count * PIXELS);
  [step, inference] = await Promise.all(
    ["step.onnx", "model.onnx"].map((name) => ort.InferenceSession.create(files + name)),
  );
  await startAnew();
}

const standardized = (byte) => (byte / 255 - about.mean) / about.std;

async function startAnew() {
  const start = tensorsOf(await (await fetched("start.safetensors")).arrayBuffer());
  for (const name of Object.keys(state)) delete state[name];
  Object.assign(state, start);
  losses.length = next = 0;
}

// --- training ----------------------------------------------------------------------------------

const image = (i) => digits.subarray(i * PIXELS, (i + 1) * PIXELS);

// The next batch, in the order of the file; a quarter of it are the visitor's digits, if any.
function batch() {
  const x = new Float32Array(about.batch * PIXELS), y = new BigInt64Array(about.batch);
  const own = taught.length ? about.batch / 4 : 0;
  for (let k = 0; k < about.batch; k++) {
    const [pixels, label] = k < own
      ? taught[(next + k) % taught.length]
      : [image((next + k) % about.learned), labels[(next + k) % about.learned]];
    x.set(pixels, k * PIXELS);
    y[k] = BigInt(label);
  }
  next = (next + about.batch) % about.learned;
  return {
    input: new ort.Tensor("float32", x, [about.batch, 1, SIDE, SIDE]),
    target: new ort.Tensor("int64", y, [about.batch]),
  };
}

// One step: loss and gradients of a batch, and the update; returns the loss.
async function makeStep(rate) {
  const given = { ...state, ...batch() };
  given.rate = new ort.Tensor("float64", Float64Array.of(rate), []);
  const results = await step.run(given);
  for (const name of Object.keys(results)) {
    if (name.endsWith(NEW)) state[name.slice(0, -NEW.length)] = results[name];
  }
  state.step = new ort.Tensor("int64", BigInt64Array.of(state.step.data[0] + 1n), []);
  losses.push(results.loss.data[0]);
  return results.loss.data[0];
}

// The ten logits of each image.
async function logitsOf(x) {
  const given = { input: new ort.Tensor("float32", x, [x.length / PIXELS, 1, SIDE, SIDE]) };
  for (const name of inference.inputNames) given[name] ??= state[name];
  return (await inference.run(given)).output.data;
}

function largest(logits, row) {
  let best = 0;
  for (let c = 1; c < 10; c++) if (logits[10 * row + c] > logits[10 * row + best]) best = c;
  return best;
}

async function shareRight() {
  const logits = await logitsOf(digits.subarray(about.learned * PIXELS));
  let right = 0;
  for (let i = 0; i < about.unseen; i++) right += largest(logits, i) === labels[about.learned + i];
  return right / about.unseen;
}

async function train() {
  training = !training;
  page("train").textContent = training ? told("Pause") : told("Train");
  const began = performance.now(), first = losses.length;
  while (training) {
    const loss = await makeStep(Number(page("rate").value));
    if (losses.length % 10 === 0) {
      const right = `${(100 * (await shareRight())).toFixed(1)} %`;
      const speed = (1000 * (losses.length - first)) / (performance.now() - began);
      say(told("Step {0}, loss {1}; reads {2} of {3} digits that it has not seen ({4} steps a second).",
        losses.length, loss.toFixed(3), right, about.unseen, speed.toFixed(0)));
      await show();
    }
    await new Promise((done) => setTimeout(done)); // lets the page answer
  }
}

// The losses of the first steps from the start, against those that xbp computed at the build.
async function compare() {
  if (training) await train();
  const own = taught.splice(0);
  await startAnew();
  let worst = 0;
  for (const expected of about.losses) {
    worst = Math.max(worst, Math.abs((await makeStep(state.rate.data[0])) - expected));
  }
  taught.push(...own);
  await show();
  say(told("{0} steps from the same start: the losses differ from those of xbp in Python by {1} at most.",
    about.losses.length, worst.toExponential(1)));
  return worst;
}

// --- drawing -----------------------------------------------------------------------------------

const color = (name) => getComputedStyle(document.body).getPropertyValue(name) || "gray";
const drawing = page("drawing"), pen = drawing.getContext("2d", OFTEN_READ);
let inked = false;

function wipe() {
  pen.fillStyle = "black";
  pen.fillRect(0, 0, drawing.width, drawing.height);
  inked = false;
}

// The drawing as MNIST's digits are: in 20 × 20 pixels, its centre of mass in the middle.
function drawn() {
  const { width, height } = drawing;
  const { data } = pen.getImageData(0, 0, width, height);
  let [left, right, top, bottom, mass, mx, my] = [width, 0, height, 0, 0, 0, 0];
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const ink = data[4 * (y * width + x)];
      if (!ink) continue;
      left = Math.min(left, x), right = Math.max(right, x);
      top = Math.min(top, y), bottom = Math.max(bottom, y);
      mass += ink, mx += ink * x, my += ink * y;
    }
  }
  const scale = 20 / Math.max(right - left + 1, bottom - top + 1);
  const small = new OffscreenCanvas(SIDE, SIDE).getContext("2d", OFTEN_READ);
  small.fillStyle = "black";
  small.fillRect(0, 0, SIDE, SIDE);
  small.imageSmoothingQuality = "high";
  const [x, y] = [SIDE / 2 - (mx / mass) * scale, SIDE / 2 - (my / mass) * scale];
  small.drawImage(drawing, x, y, width * scale, height * scale);
  const pixels = small.getImageData(0, 0, SIDE, SIDE).data;
  return Float32Array.from({ length: PIXELS }, (_, i) => standardized(pixels[4 * i]));
}

function stroke(event) {
  if (!(event.buttons & 1)) return;
  const box = drawing.getBoundingClientRect(), scale = drawing.width / box.width;
  const [x, y] = [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
  pen.strokeStyle = "white";
  pen.lineWidth = 20;
  pen.lineCap = pen.lineJoin = "round";
  if (event.type === "pointerdown") {
    pen.beginPath();
    pen.moveTo(x, y);
    drawing.setPointerCapture(event.pointerId);
  }
  pen.lineTo(x + 0.01, y);
  pen.stroke();
  inked = true;
  event.preventDefault();
}

function bars(shares) {
  const canvas = page("guess"), to = canvas.getContext("2d");
  to.clearRect(0, 0, canvas.width, canvas.height);
  to.font = "16px system-ui, sans-serif";
  shares.forEach((share, digit) => {
    to.fillStyle = color("--color-foreground-primary");
    to.fillText(digit, 4, 28 * digit + 20);
    to.fillStyle = color("--color-brand-primary");
    to.fillRect(24, 28 * digit + 5, Math.max(1, 250 * share), 20);
  });
}

function curve() {
  const canvas = page("losses"), to = canvas.getContext("2d"), { width, height } = canvas;
  to.clearRect(0, 0, width, height);
  to.strokeStyle = color("--color-brand-primary");
  const top = Math.max(2.5, ...losses.slice(0, 50)), last = Math.max(1, losses.length - 1);
  to.beginPath();
  losses.forEach((loss, k) => {
    to.lineTo((width * k) / last, height - 4 - ((height - 8) * Math.min(loss, top)) / top);
  });
  to.stroke();
}

function kernels() {
  const canvas = page("kernels"), to = canvas.getContext("2d"), cell = 14;
  const { data, dims: [count] } = state["0.weight"];
  const scale = Math.max(...data.map(Math.abs));
  for (let k = 0; k < count; k++) {
    const [left, top] = [8 + (k % 3) * 92, 4 + Math.floor(k / 3) * 80];
    for (let i = 0; i < 25; i++) {
      const v = data[25 * k + i] / scale, grey = Math.round(127.5 * (1 + v));
      to.fillStyle = `rgb(${grey}, ${grey}, ${grey})`;
      to.fillRect(left + (i % 5) * cell, top + Math.floor(i / 5) * cell, cell, cell);
    }
  }
}

const say = (text) => (page("state").textContent = text);

async function show() {
  curve();
  kernels();
  if (!inked) {
    bars(new Array(10).fill(0));
    page("says").textContent = told("What the network sees in it");
    return;
  }
  const logits = await logitsOf(drawn()), peak = Math.max(...logits);
  const powers = Array.from(logits, (z) => Math.exp(z - peak));
  const sum = powers.reduce((a, b) => a + b);
  bars(powers.map((power) => power / sum));
  page("says").textContent = told("The network sees a {0}", largest(logits, 0));
}

// --- the page ----------------------------------------------------------------------------------

for (const type of ["pointerdown", "pointermove"]) drawing.addEventListener(type, stroke);
drawing.addEventListener("pointerup", () => inference && show());
page("clear").addEventListener("click", () => (wipe(), inference && show()));
page("train").addEventListener("click", train);
page("anew").addEventListener("click", async () => {
  if (training) await train();
  taught.length = 0;
  await startAnew();
  await show();
  say(told("The weights are random again."));
});
page("teach").addEventListener("click", () => {
  if (!inked) return say(told("Draw a digit first."));
  taught.push([drawn(), Number(page("label").value)]);
  say(told("A quarter of each batch are now your digits ({0}).", taught.length));
});
page("compare").addEventListener("click", compare);
const shown = () => inference && show(); // in the colours of the page, which may change
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", shown);
new MutationObserver(shown).observe(document.body, { attributeFilter: ["data-theme"] });
wipe();
load().then(async () => {
  for (const name of ["train", "anew", "teach", "compare"]) page(name).disabled = false;
  await show();
  say(told("The weights are random. Draw a digit, and train."));
}).catch((error) => {
  say(told("The network cannot run ({0}). A page from a file may not load its parts: serve the site's "
    + "folder, for example by python -m http.server.", error.message));
});
