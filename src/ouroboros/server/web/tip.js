// What stands by a token: its source and step, for the pointer and for the arrow keys.

import { meaning } from "./answer.js";

export function explainTokens(area, tip, say) {
  let here = null;

  function move(token) {
    here?.classList.remove("here");
    here?.parentElement?.classList.remove("here");
    here = token;
    tip.hidden = !token;
    if (!token) return;
    tip.textContent = meaning(token);
    const box = token.getClientRects()[0] ?? token.getBoundingClientRect();
    const left = Math.min(box.left, innerWidth - tip.offsetWidth - 8);
    const top = box.bottom + 6 + tip.offsetHeight < innerHeight ? box.bottom + 6 : box.top - tip.offsetHeight - 6;
    tip.style.left = `${Math.max(8, left)}px`;
    tip.style.top = `${top}px`;
  }

  const under = (event) => (event.target instanceof Element ? event.target.closest(".token") : null);
  area.addEventListener("pointerover", (event) => move(under(event)));
  area.addEventListener("pointerleave", () => move(null));
  area.addEventListener("scroll", () => move(null), { passive: true });
  area.addEventListener("focusout", () => move(null));
  area.addEventListener("keydown", (event) => {
    const forward = event.key === "ArrowRight";
    if (!event.target.matches(".text") || !(forward || event.key === "ArrowLeft")) return;
    event.preventDefault();
    const tokens = [...event.target.querySelectorAll(".token")];
    const place = tokens.indexOf(here);
    const next = place < 0 ? tokens[forward ? 0 : tokens.length - 1] : tokens[place + (forward ? 1 : -1)];
    if (!next) return;
    next.scrollIntoView({ block: "nearest" });
    move(next);
    next.classList.add("here");
    next.parentElement.classList.add("here");
    say(`${next.textContent.trim() || "space"}: ${meaning(next)}`);
  });
}
