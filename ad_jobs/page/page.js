"use strict";
// One slider for all heatmaps, and a dialog that enlarges one picture at a time. Without script the page still shows
// every picture with its heatmap at the default strength.
(() => {
  const slider = document.getElementById("opacity");
  const output = document.getElementById("opacity-value");
  const dialog = document.getElementById("viewer");
  const cards = [...document.querySelectorAll(".card button")];
  if (!slider || !dialog || !cards.length) return;

  const control = slider.closest(".opacity");
  const home = control.parentElement;
  control.hidden = false;
  const show = () => {
    document.documentElement.style.setProperty("--heat", slider.value / 100);
    output.textContent = `${slider.value} %`;
  };
  slider.addEventListener("input", show);
  show();

  const stage = dialog.querySelector(".stage");
  const caption = dialog.querySelector(".caption");
  let current = 0;
  const open = (index) => {
    current = (index + cards.length) % cards.length;
    stage.replaceChildren(cards[current].querySelector(".stack").cloneNode(true));
    caption.replaceChildren(cards[current].closest(".card").querySelector("figcaption").cloneNode(true));
    if (!dialog.open) {
      // A modal dialog makes the rest of the page inert: the one slider comes along.
      dialog.querySelector(".tools").prepend(control);
      dialog.showModal();
    }
  };
  cards.forEach((card, index) => card.addEventListener("click", () => open(index)));
  dialog.querySelector(".previous").addEventListener("click", () => open(current - 1));
  dialog.querySelector(".next").addEventListener("click", () => open(current + 1));
  dialog.querySelector(".close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("keydown", (event) => {
    if (event.target === slider) return;
    if (event.key === "ArrowLeft") open(current - 1);
    if (event.key === "ArrowRight") open(current + 1);
  });
  dialog.addEventListener("close", () => {
    home.prepend(control);
    cards[current].focus();
  });
})();
