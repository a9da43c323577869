"use strict";
// Charts as PNG: the SVG with the page's colours is drawn on a canvas twice its size.
const asPng = async (svg) => {
  const copy = svg.cloneNode(true);
  const originals = [svg, ...svg.querySelectorAll("*")];
  [copy, ...copy.querySelectorAll("*")].forEach((node, index) => {
    const style = getComputedStyle(originals[index]);
    for (const name of ["fill", "fill-opacity", "stroke", "stroke-width", "stroke-dasharray", "font"]) {
      node.style.setProperty(name, style.getPropertyValue(name));
    }
  });
  const { width, height } = svg.viewBox.baseVal;
  copy.setAttribute("width", width);
  copy.setAttribute("height", height);
  const image = new Image();
  image.src = "data:image/svg+xml;charset=utf-8," + encodeURIComponent(new XMLSerializer().serializeToString(copy));
  await image.decode();
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [2 * width, 2 * height];
  const context = canvas.getContext("2d");
  context.fillStyle = getComputedStyle(svg.closest("figure")).backgroundColor;
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/png");
};
for (const button of document.querySelectorAll("[data-png]")) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    const link = document.createElement("a");
    link.download = button.dataset.png + ".png";
    link.href = await asPng(document.querySelector("#" + button.dataset.png + " svg"));
    link.click();
  });
}
// Live: follow /status, and load again when a version is new or a job has ended. The regular checks for
// labels, which leave no job behind when they find none, are no reason to.
const POLL_MS = 3000;
let seen = null;
const follow = async () => {
  const answer = await fetch("../status");
  const project = (await answer.json()).find((one) => String(one.project_id) === document.body.dataset.project);
  if (!project) return;
  const job = project.jobs[0] || {};
  const ended = project.jobs.find((one) => one.state !== "running") || {};
  const found = [project.model_version, ended.id, ended.state].join(" ");
  // The version may have changed between the page's making and the first look.
  const isOld = (project.model_version || "") !== document.body.dataset.version;
  if (isOld || (seen !== null && seen !== found)) location.reload();
  seen = found;
  const state = document.getElementById("state");
  state.classList.toggle("working", job.state === "running");
  if (job.state === "running") state.textContent = "Working: " + (job.stage || "starting") + ".";
  else if (project.waiting) state.textContent = "New labels wait for the next version.";
};
if ("live" in document.body.dataset) {
  setInterval(() => follow().catch(() => {}), POLL_MS);
}
