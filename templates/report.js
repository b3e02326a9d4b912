for (const figure of document.querySelectorAll("figure")) {
  const shown = figure.querySelector("output");
  figure.addEventListener("pointerover", (event) => {
    const value = event.target.closest(".value");
    if (value) shown.textContent = value.querySelector("title").textContent;
  });
}
for (const button of document.querySelectorAll("button")) {
  const raw = document.getElementById(button.value);
  button.hidden = false;
  button.addEventListener("click", () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([raw.textContent], { type: "application/json" }));
    link.download = raw.dataset.name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  });
}
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
});
