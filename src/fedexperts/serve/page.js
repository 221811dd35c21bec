// What is dropped, chosen, pasted or typed is asked about, one after the other. Words of others become text, never markup.

const FEW = 10; // classes that are seen at once
const place = (id) => document.getElementById(id);
const about = await (await fetch("/about")).json();
let line = Promise.resolve(); // what is asked waits for what was asked before

place("name").textContent = document.title = about.name;
place("who").textContent = `Predicting with ${about.who}.`;
about.suffixes ? takeImages() : takeTexts();

function takeImages() {
  const form = place("images"), files = place("files");
  files.accept = about.suffixes.join(",");
  place("kinds").textContent = `${about.suffixes.map((suffix) => suffix.slice(1)).join(", ")}; several at once, too`;
  form.hidden = false;
  files.addEventListener("change", () => {
    askAll(files.files);
    form.reset(); // the same file may be chosen again
  });
  addEventListener("paste", (event) => askAll(event.clipboardData.files));
  addEventListener("dragover", (event) => {
    event.preventDefault();
    form.classList.add("over");
  });
  addEventListener("dragleave", (event) => event.relatedTarget || form.classList.remove("over"));
  addEventListener("drop", (event) => {
    event.preventDefault();
    form.classList.remove("over");
    askAll(event.dataTransfer.files);
  });
}

function askAll(files) {
  for (const file of [...files]) ask(file.name, file, file);
}

function takeTexts() {
  const form = place("texts"), text = place("text");
  form.hidden = false;
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    ask(text.value, text.value, null);
  });
  text.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
}

function ask(name, body, picture) {
  line = line.then(async () => {
    tell(`Asking about ${name} …`, true);
    const said = await answer(body);
    show(name, picture, said);
    tell(`${name}: ${said.error ?? `${said.class}, ${percent(said.probability)}`}`, false);
  });
}

function tell(text, seen) { // an answer stands below for who sees, and is read out for who does not
  place("status").textContent = text;
  place("status").className = seen ? "" : "unseen";
}

async function answer(body) {
  try {
    const response = await fetch("/say", { method: "POST", body });
    return response.status !== 500 ? await response.json() : { error: "the server failed; its terminal says why" };
  } catch {
    return { error: "no answer: is fedexperts still running?" };
  }
}

function show(name, picture, said) {
  const article = place("answer").content.firstElementChild.cloneNode(true);
  const part = (selector) => article.querySelector(selector);
  part(".what").textContent = name;
  draw(part("img"), picture);
  part("h2").textContent = said.error ? "Not predicted" : `${said.class}, ${percent(said.probability)}`;
  if (said.error) {
    article.classList.add("wrong");
    part(".what").textContent += `: ${said.error}`;
  }
  const [seen, others] = [said.classes?.slice(0, FEW) ?? [], said.classes?.slice(FEW) ?? []];
  fill(part(".classes"), seen);
  fill(part("details table"), others);
  part("details").hidden = !others.length;
  part("summary").textContent = `${others.length} more`;
  fill(part(".experts"), said.experts ?? []);
  place("found").prepend(article);
}

function draw(img, picture) {
  img.hidden = !picture;
  if (!picture) return;
  img.onload = img.onerror = (event) => {
    URL.revokeObjectURL(img.src);
    img.hidden = event.type === "error"; // a kind that this browser does not know
  };
  img.src = URL.createObjectURL(picture);
}

function fill(table, shares) {
  table.hidden = !shares.length;
  for (const [name, share] of shares) {
    const row = table.tBodies[0].insertRow();
    const head = document.createElement("th");
    head.scope = "row";
    head.textContent = name;
    const bar = document.createElement("div");
    bar.className = "bar";
    bar.style.width = `${100 * share}%`;
    row.append(head);
    row.insertCell().append(bar);
    row.insertCell().textContent = percent(share);
  }
}

function percent(share) {
  return `${(100 * share).toFixed(1)} %`;
}
