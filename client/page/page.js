// The owner's page. Text of anybody is only ever set by textContent.
"use strict";

const $ = (id) => document.getElementById(id);
const PARTS = ["start", "history", "train", "try", "adapters", "leaves"];
const LARGEST = 100e6; // bytes of a file, as the server has it
let here = null; // what the vault was when it was last asked
let following = 0; // timer of the training's progress
let reading = null; // the preview that waits for a yes
let writing = null; // what stops the text that is being written
let written = null; // prompt and text that can be judged

// --- asking the server -------------------------------------------------------------------

async function send(name, asked = {}, more = {}) {
  let answer;
  try {
    answer = await fetch(`api/${name}`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(asked),
      ...more,
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("idiolect does not answer: its terminal was closed. Start `idiolect ui` again.");
  }
  if (answer.ok) return answer;
  let sentence = `the server answered ${answer.status}: load the page again.`;
  try {
    sentence = (await answer.json()).error.message;
  } catch {
    // it is not of this server
  }
  throw new Error(sentence);
}

const ask = async (name, asked) => (await send(name, asked)).json();

// A sentence, and a link to what comes next.
function say(text, button = "", part = "") {
  $("wrong").textContent = "";
  $("said").textContent = text;
  if (button) $("said").append(" ", make("a", { className: "button main", href: `#${part}`, text: button }));
}

function complain(error) {
  if (error.name === "AbortError") return;
  $("said").textContent = "";
  $("wrong").textContent = error.message.replace(/^[a-z]+ /, capital);
  $("wrong").scrollIntoView({ block: "nearest" });
}

// Run something for a button: its errors are said, and it can't be clicked twice.
function act(button, work) {
  return async (event) => {
    event?.preventDefault();
    if (button?.disabled) return;
    if (button) button.disabled = true;
    try {
      await work(event);
    } catch (error) {
      complain(error);
    } finally {
      if (button) button.disabled = false;
    }
  };
}

const on = (id, work) => $(id).addEventListener("click", act($(id), work));

// --- making elements ---------------------------------------------------------------------

function make(tag, traits = {}, ...inside) {
  const one = document.createElement(tag);
  for (const [name, value] of Object.entries(traits)) {
    if (name === "text") one.textContent = value;
    else if (name === "click" || name === "change") one.addEventListener(name, act(one, value));
    else if (name in one) one[name] = value;
    else one.setAttribute(name, value);
  }
  one.append(...inside);
  return one;
}

const fill = (id, ...inside) => $(id).replaceChildren(...inside);
const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);
const count = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;

// --- parts of the page -------------------------------------------------------------------

function show(first) {
  const wanted = location.hash.slice(1);
  if (wanted === "main") return;
  const part = PARTS.includes(wanted) ? wanted : "start";
  for (const name of PARTS) $(name).hidden = name !== part;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${part}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (first) return;
  say("");
  $("wrong").textContent = "";
  scrollTo(0, 0);
  $(`${part}-title`).focus({ preventScroll: true });
  if (part === "history") list().catch(complain);
  if (part === "try") ask("warm").catch(complain);
  refresh().catch(complain);
}

async function refresh() {
  here = await ask("overview");
  drawStart();
  drawSources();
  drawTraining(here.training);
  drawTry();
  drawAdapters();
  drawLeaves();
}

function drawStart() {
  const { next } = here;
  $("next-text").textContent = next.text;
  $("next-button").textContent = next.button;
  $("next-button").href = `#${next.place}`;
  $("next-button").hidden = false;
  const steps = [
    [here.liked >= here.fewest, `Add ${here.fewest} texts or more that you have written`],
    [here.adapters.length > 0, "Train: the model learns from them"],
    [here.active > 0, "Try what it writes"],
  ];
  fill("steps", ...steps.map(([done, text]) => make("li", { className: done ? "done" : "", text: done ? `${text} (done)` : text })));
  const used = here.active ? `adapter ${here.active}` : "none in use";
  const facts = [
    ["Texts", `${here.liked} liked, ${here.disliked} disliked`],
    ["Adapter", used],
    ["Model", here.toy ? `${here.backbone}: ${here.toy}. \`idiolect settings backbone NAME\`, in a terminal, takes another` : here.backbone],
    ["Server", here.leaves.server ? `joined ${here.leaves.server}` : "none joined; nothing leaves this device"],
    ["Vault", here.vault],
  ];
  fill("facts", ...facts.flatMap(([name, value]) => [make("dt", { text: name }), make("dd", { text: value })]));
}

// --- texts -------------------------------------------------------------------------------

function drawSources() {
  fill(
    "sources",
    ...here.sources.map((one) =>
      make(
        "li",
        { className: "line" },
        make("p", { text: `${one.name}: ${count(one.pairs, "text")}` }),
        make("p", {}, make("button", { text: "Forget all of it", "aria-label": `Forget all of ${one.name}`, click: () => forget({ sources: [one.name] }, `all of ${one.name}`) })),
      ),
    ),
  );
  $("first").hidden = here.sources.length > 0;
  if (!here.sources.length) fill("sources", make("li", { text: "Nothing is here yet." }));
  const chosen = $("source").value;
  fill("source", make("option", { value: "", text: "everywhere" }), ...here.sources.map((one) => make("option", { value: one.name, text: one.name })));
  $("source").value = here.sources.some((one) => one.name === chosen) ? chosen : "";
}

async function list(more = false) {
  const skip = more ? $("pairs").childElementCount : 0;
  const found = await ask("pairs", { search: $("search").value, source: $("source").value, skip });
  const rows = found.pairs.map(row);
  if (more) $("pairs").append(...rows);
  else fill("pairs", ...rows);
  $("found").textContent = `${count(found.found, "text")}, newest first`;
  $("more").hidden = $("pairs").childElementCount >= found.found;
  if (more) rows[0]?.querySelector("button").focus();
}

function texts(pair) {
  return [
    make("p", { className: "asked", text: pair.prompt || "(nothing was asked)" }),
    make("p", { className: pair.text.length > 600 ? "text long" : "text", text: pair.text, ...(pair.text.length > 600 ? { tabIndex: 0 } : {}) }),
  ];
}

function row(pair) {
  const short = pair.text.slice(0, 40);
  const verdict = (liked, className, word) =>
    make("button", {
      className,
      text: word,
      "aria-label": `${word}: ${short}`,
      "aria-pressed": String(pair.liked === liked),
      click: async (event) => {
        const after = await ask("feedback", { id: pair.id, liked });
        pair.liked = after.liked;
        for (const one of event.target.parentNode.querySelectorAll("[aria-pressed]")) one.setAttribute("aria-pressed", String(one === event.target));
        say(liked ? "Liked." : "Disliked: the next training learns to avoid it.");
        await refresh();
      },
    });
  return make(
    "li",
    {},
    ...texts(pair),
    make("p", { className: "note", text: `${pair.date}, ${pair.source}` }),
    make(
      "p",
      { className: "buttons" },
      verdict(true, "up", "Like"),
      verdict(false, "down", "Dislike"),
      make("button", { text: "Forget", "aria-label": `Forget: ${short}`, click: () => forget({ ids: [pair.id] }, "this text") }),
    ),
  );
}

async function read() {
  const file = $("file").files[0];
  if (!file) throw new Error("no file is chosen: choose one.");
  if (file.size > LARGEST) throw new Error("the file has more than 100 MB: import it by `idiolect import FILE` in a terminal, or a part of it here.");
  const asked = { name: file.name, user: $("user").value, dates: $("dates").value, newest: $("newest").checked, skip: $("skip").checked };
  $("file-busy").textContent = `reading ${file.name}…`;
  try {
    await leavePreview();
    const headers = { "content-type": "application/octet-stream", "x-asked": encodeURIComponent(JSON.stringify(asked)) };
    const answer = await send("upload", {}, { headers, body: file });
    drawPreview(await answer.json());
  } catch (error) {
    if (/“/.test(error.message)) document.querySelector("#file-form details").open = true;
    throw error;
  } finally {
    $("file-busy").textContent = "";
  }
}

function drawPreview(found) {
  reading = found.id;
  const parts = [`${count(found.new, "text")} would be added`];
  if (found.known) parts.push(`${found.known} are here already`);
  if (found.disliked) parts.push(`${found.disliked} of the file's are disliked`);
  $("preview-count").textContent = `${parts.join(", ")}.`;
  const lines = [...found.report];
  if (found.contradicted) lines.push(`${found.contradicted} have the other verdict in the vault, which stays`);
  fill("preview-report", ...lines.map((text) => make("li", { text })));
  fill("preview-pairs", ...found.pairs.map((pair) => make("li", {}, ...texts(pair))));
  $("preview-source").value = found.source;
  $("preview-add").textContent = found.new ? `Add ${count(found.new, "text")}` : "Nothing to add";
  $("preview-add").disabled = !found.new;
  $("preview").hidden = false;
  say("");
  $("preview-title").focus();
}

async function leavePreview() {
  const number = reading;
  reading = null;
  $("preview").hidden = true;
  if (number) await ask("drop", { id: number }).catch(() => {});
}

async function add() {
  const done = await ask("add", { id: reading, source: $("preview-source").value });
  reading = null;
  $("preview").hidden = true;
  $("file-form").reset();
  $("file-read").hidden = true;
  await Promise.all([refresh(), list()]);
  const text = `${count(done.new, "text")} added from ${done.source}.`;
  if (here.liked < here.fewest) say(`${text} Training needs ${here.fewest} that you like.`);
  else say(text, "Next: train", "train");
  $("history-title").focus();
}

async function byHand() {
  await ask("feedback", { prompt: $("hand-prompt").value, text: $("hand-text").value, liked: true });
  $("hand-form").reset();
  await Promise.all([refresh(), list()]);
  say("Added.");
  $("hand-prompt").focus();
}

// What forgetting costs is said before; then it is done.
async function forget(what, words) {
  const cost = await ask("cost", what);
  const parts = [`${count(cost.pairs, "text")} will be gone for good.`];
  if (cost.adapters.length) {
    const learnt = cost.adapters.length === 1 ? "has learnt from it and is" : "have learnt from it and are";
    parts.push(`Adapter ${cost.adapters.join(" and ")} ${learnt} erased too.`);
    if (cost.active) parts.push("One of them is in use.");
  }
  if (here.training.running) parts.push("The training that is running is stopped.");
  if (!(await sure(`Forget ${words}?`, parts.join(" "), "Forget", cost.active))) return;
  const done = await ask("forget", { ...what, train: cost.active && $("ask-train").checked });
  await Promise.all([refresh(), list()]);
  const knew = done.adapters.length ? ` Adapters erased with that: ${done.adapters.join(", ")}.` : "";
  say(`${count(done.pairs, "text")} forgotten.${knew}${done.again ? " A new adapter is being trained on what remains." : ""}`);
  $("history-title").focus();
}

function sure(title, text, yes, more = false) {
  const dialog = $("ask");
  $("ask-title").textContent = title;
  $("ask-text").textContent = text;
  $("ask-yes").textContent = yes;
  $("ask-more").hidden = !more;
  dialog.returnValue = "";
  dialog.showModal();
  $("ask-no").focus();
  return new Promise((done) => {
    dialog.addEventListener("close", () => done(dialog.returnValue === "yes"), { once: true });
  });
}

// --- training ----------------------------------------------------------------------------

function drawTraining(at) {
  const few = here.liked < here.fewest;
  $("train-few").textContent = few
    ? `You have ${count(here.liked, "text")} that you like; training needs ${here.fewest}.`
    : `It learns from ${here.liked - here.judges} of your ${here.liked} texts; the newest ${here.judges} are kept back and judge it.`;
  $("train-start").disabled = few;
  $("train-add").hidden = !few;
  $("train-idle").hidden = at.running;
  $("train-busy").hidden = $("busy").hidden = !at.running;
  const words = capital(at.words);
  if ($("train-words").textContent !== words) $("train-words").textContent = words;
  if (at.of) Object.assign($("train-bar"), { max: at.of, value: at.done });
  else $("train-bar").removeAttribute("value");
  $("train-done").hidden = at.running || !at.outcome;
  if (at.outcome && !at.running) drawOutcome(at.outcome);
  if (at.running && !following) following = setTimeout(follow, 700);
}

function drawOutcome(found) {
  $("train-verdict").textContent = found.verdict;
  fill("train-doubts", ...found.doubts.map((text) => make("li", { text })));
  $("train-try").hidden = !here.active;
  $("train-changes-title").hidden = !found.changes.length;
  const names = { asked: "asked", before: "before", after: "now", own: "you wrote" };
  fill(
    "train-changes",
    ...found.changes.map((one) =>
      make("dl", {}, ...Object.entries(names).flatMap(([name, word]) => [make("dt", { text: word }), make("dd", { text: one[name] || "(nothing)" })])),
    ),
  );
}

async function follow() {
  following = 0;
  let at;
  try {
    at = (await ask("training")).training;
  } catch (error) {
    return complain(error);
  }
  here.training = at;
  if (at.running) return drawTraining(at);
  await refresh().catch(complain);
  if (at.error) complain(new Error(at.error));
  else if (at.stopped) say("Stopped. The next training goes on where this one stood.");
  else if (at.outcome) say("The training has ended.");
  if (at.outcome && !$("train").hidden) $("train-verdict-title").focus();
}

async function train() {
  const method = document.querySelector("[name=method]:checked").value;
  const { training } = await ask("train", { method });
  here.training = training;
  say("Training has begun.");
  drawTraining(training);
  $("train-stop").focus();
}

// --- trying ------------------------------------------------------------------------------

function drawTry() {
  $("try-toy").textContent = here.toy ? `The model is ${here.backbone}, ${here.toy}.` : "";
  const used = here.adapters.find((one) => one.active);
  $("try-start").disabled = !used || writing !== null;
  $("strength-keep").disabled = !used;
  $("try-none").hidden = Boolean(used);
  $("try-form").hidden = $("try-texts").hidden = !used;
  if (used && $("strength").dataset.of !== `${used.number}/${used.strength}`) {
    $("strength").dataset.of = `${used.number}/${used.strength}`;
    setStrength(used.strength);
  }
}

function setStrength(value) {
  $("strength").value = value;
  $("strength-out").textContent = $("strength").value;
}

async function* lines(body) {
  let rest = "";
  for (const reader = body.pipeThrough(new TextDecoderStream()).getReader(); ; ) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n");
    rest = parts.pop();
    for (const part of parts) yield JSON.parse(part);
  }
}

async function write() {
  const prompt = $("prompt").value;
  writing = new AbortController();
  written = null;
  $("judge").hidden = true;
  $("try-start").disabled = true;
  $("try-stop").hidden = false;
  $("try-busy").textContent = "writing…";
  for (const name of ["personal", "shared"]) $(name).textContent = "";
  try {
    const asked = { prompt, strength: Number($("strength").value), budget: Number($("budget").value), compare: true };
    const answer = await send("write", asked, { signal: writing.signal });
    for await (const event of lines(answer.body)) {
      if (event.error) throw new Error(event.error);
      if (event.phase) $("try-busy").textContent = `${event.phase}…`;
      if (event.piece) {
        $("try-busy").textContent = "writing…";
        $(event.name).append(event.piece); // a text node
      }
    }
    for (const name of ["personal", "shared"]) $(name).textContent ||= "(it writes nothing)";
    $("try-busy").textContent = "Written.";
  } catch (error) {
    $("try-busy").textContent = error.name === "AbortError" ? "Stopped." : "";
    if (error.name !== "AbortError") throw error;
  } finally {
    writing = null;
    $("try-stop").hidden = true;
    $("try-start").disabled = false;
    const text = $("personal").textContent;
    if (text && text !== "(it writes nothing)") {
      written = { prompt, text };
      $("judge").hidden = false;
    }
  }
}

async function mine() {
  const { pairs } = await ask("pairs", {});
  const asked = pairs.filter((one) => one.prompt);
  if (!asked.length) throw new Error("none of your texts has a prompt: write one.");
  const at = asked.findIndex((one) => one.prompt === $("prompt").value);
  $("prompt").value = asked[(at + 1) % asked.length].prompt;
  $("prompt").focus();
}

async function judge(event) {
  const liked = Boolean(event.target.dataset.liked);
  await ask("feedback", { ...written, liked });
  $("judge").hidden = true;
  say(liked ? "Kept as a text that you like." : "Kept as a text that the next training learns to avoid.");
  await refresh();
}

async function keepStrength() {
  const strength = Number($("strength").value);
  await ask("use", { number: here.active, strength });
  await refresh();
  say(`The strength is ${strength} from now on.`);
}

// --- adapters ----------------------------------------------------------------------------

function drawAdapters() {
  const rows = here.adapters.map((one) =>
    make(
      "li",
      {},
      make("h2", { text: `Adapter ${one.number} ` }, ...(one.active ? [make("span", { className: "mark", text: "in use" })] : [])),
      make("p", { text: one.learnt }),
      make("p", { text: one.accepted ? "Your newest texts judged it good enough to use." : `Not good enough: ${one.verdict}.` }),
      make("details", {}, make("summary", { text: "Numbers" }), make("p", { text: `${one.numbers}; strength ${one.strength}` })),
      make("p", { className: "buttons" }, make("button", { text: one.active ? "Do not use it" : "Use it", "aria-label": one.active ? `Do not use adapter ${one.number}` : `Use adapter ${one.number}`, click: () => use(one.active ? 0 : one.number) })),
    ),
  );
  fill("adapter-list", ...(rows.length ? rows.reverse() : [make("li", { text: "None yet: training makes one." })]));
  $("rollback").disabled = !here.active;
  $("reset").disabled = !here.adapters.length;
}

async function use(number) {
  await ask("use", { number });
  await refresh();
  say(number ? `Adapter ${number} is in use now.` : "No adapter is in use now.");
  $("adapters-title").focus();
}

// --- what leaves -------------------------------------------------------------------------

function drawLeaves() {
  const { leaves, sent } = here;
  const known = leaves.device ? `, as ${leaves.device}` : ", which has not let this device in yet";
  const paused = leaves.paused ? " You have paused: it is not answered." : "";
  $("server").textContent = leaves.server
    ? `You have joined ${leaves.server}${known}.${paused}`
    : `No server is joined: nothing leaves this device.${leaves.paused ? " You have paused as well." : ""}`;
  $("join").hidden = Boolean(leaves.server);
  $("pause").textContent = leaves.paused ? "Answer servers again" : "Pause: answer no server";
  $("leave").hidden = !leaves.server;
  fill("outflows", ...leaves.outflows.map(outflow));
  fill("ceilings", ...leaves.ceilings.map(ceiling));
  const cells = (one) => [one.when, one.what, one.bytes, one.run, one.cover].map((text) => make("td", { text }));
  fill("sent-rows", ...sent.map((one) => make("tr", {}, ...cells(one))));
  $("sent").hidden = !sent.length;
  $("sent-none").hidden = sent.length > 0;
}

function outflow(one) {
  const choices = one.answers.map((answer) =>
    make(
      "p",
      {},
      make(
        "label",
        { className: "choice" },
        make("input", {
          type: "radio",
          name: `outflow-${one.name}`,
          checked: answer.name === one.given,
          change: async () => {
            try {
              await ask("answer", { outflow: one.name, answer: answer.name });
              say(`${one.name}: ${answer.name} from now on.`);
              one.given = answer.name;
            } finally {
              if (one.given !== answer.name) drawLeaves();
            }
          },
        }),
        make("span", {}, make("strong", { text: answer.name }), ` ${answer.means}`),
      ),
    ),
  );
  return make("fieldset", {}, make("legend", { text: one.what }), ...choices);
}

function ceiling(one) {
  const id = `ceiling-${one.name}`;
  const input = make("input", { id, value: one.most, autocomplete: "off" });
  const words = `${one.spent} of ${one.most} spent`;
  const form = make(
    "form",
    { className: "fields" },
    make("p", {}, make("label", { htmlFor: id, text: `${one.meaning} (${one.name})` }), input),
    make("p", {}, make("button", { type: "submit", text: "Change", "aria-label": `Change ${one.name}` })),
  );
  form.addEventListener(
    "submit",
    act(form.querySelector("button"), async () => {
      await ask("ceiling", { name: one.name, value: input.value });
      await refresh();
      say(`${one.name} is ${input.value} from now on.`);
    }),
  );
  return make("div", {}, form, make("p", {}, make("meter", { value: one.share, min: 0, max: 1, "aria-label": `${one.name}: ${words}` }), make("span", { text: words })));
}

async function pause() {
  const { paused } = await ask("pause", { paused: !here.leaves.paused });
  await refresh();
  say(paused ? "Paused: no server is answered." : "Servers are answered again, by `idiolect node run`.");
}

async function leave() {
  const text = `This device's key for ${here.leaves.server} is erased, and so is what its runs left here. Your adapters stay.`;
  if (!(await sure("Leave the server?", text, "Leave"))) return;
  const { left } = await ask("leave");
  await refresh();
  say(`Left ${left}. Ask its operator to revoke this device's key as well.`);
}

// --- when the page is there --------------------------------------------------------------

function dropping() {
  const form = $("file-form");
  const stop = (event) => event.preventDefault();
  for (const name of ["dragover", "drop"]) addEventListener(name, stop); // a file dropped beside it opens nothing
  form.addEventListener("dragover", () => form.classList.add("over"));
  for (const name of ["dragleave", "drop"]) form.addEventListener(name, () => form.classList.remove("over"));
  form.addEventListener("drop", (event) => {
    if (!event.dataTransfer.files.length) return;
    $("file").files = event.dataTransfer.files;
    $("file").dispatchEvent(new Event("change"));
  });
}

function begin() {
  const submit = (id, button, work) => $(id).addEventListener("submit", act($(button), work));
  dropping();
  $("file").addEventListener("change", () => {
    $("file-read").hidden = !$("file").files.length;
    if ($("file").files.length) $("file-read").click(); // reading keeps nothing
  });
  submit("file-form", "file-read", read);
  submit("hand-form", null, byHand);
  submit("search-form", null, () => list());
  submit("try-form", null, () => (writing ? null : write()));
  $("source").addEventListener("change", act(null, () => list()));
  on("example", async () => {
    await leavePreview();
    drawPreview(await ask("example"));
  });
  on("preview-add", add);
  on("preview-drop", async () => {
    await leavePreview();
    say("Nothing was added.");
    $("file").focus();
  });
  on("more", () => list(true));
  on("train-start", train);
  on("train-stop", async () => {
    await ask("stop");
  });
  on("prompt-mine", mine);
  on("try-stop", () => writing?.abort());
  on("strength-keep", keepStrength);
  $("strength").addEventListener("input", () => setStrength($("strength").value));
  for (const button of $("judge").querySelectorAll("button")) button.addEventListener("click", act(button, judge));
  on("rollback", async () => {
    const { active } = await ask("rollback");
    await refresh();
    say(active ? `Adapter ${active} is in use now.` : "No adapter is in use now.");
  });
  on("reset", async () => {
    if (!(await sure("Go back to the bare model?", "No adapter is in use then, and the next training starts from the bare model. Your adapters are kept.", "Go back"))) return;
    await ask("reset");
    await refresh();
    say("No adapter is in use now.");
  });
  on("pause", pause);
  on("leave", leave);
  $("ask-yes").addEventListener("click", () => $("ask").close("yes"));
  $("ask-no").addEventListener("click", () => $("ask").close("no"));
  addEventListener("hashchange", () => show(false));
  addEventListener("focus", () => refresh().catch(() => {})); // another tab may have changed it
  show(true);
  refresh().catch(complain);
  if (!$("history").hidden) list().catch(complain);
}

begin();
