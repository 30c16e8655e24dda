"""Talk to the page of examples/space in a browser without a window: Qt's, which is Chromium and comes as a wheel.

    QT_QPA_PLATFORM=offscreen python tests/page_in_browser.py URL SCREENSHOT

Prints, as JSON, what the page showed after each step.
"""

import json
import sys

from PySide6.QtCore import QEventLoop, QTimer, QUrl
from PySide6.QtWebEngineWidgets import QWebEngineView
from PySide6.QtWidgets import QApplication


SHOWN = """JSON.stringify({
    counters: document.querySelector("#counters")?.innerText ?? "",
    chat: [...document.querySelectorAll(".message")].map(x => x.innerText.trim()),
    picture: document.querySelector("#picture img")?.naturalWidth ?? 0,
    text: document.querySelector("#you textarea, #you input")?.value ?? null,
    error: document.querySelector(".toast-body")?.innerText ?? "",
    file: document.querySelector("#file a")?.href ?? "",
})"""
SAY = """{
    const box = document.querySelector("#you textarea, #you input");
    Object.getOwnPropertyDescriptor(Object.getPrototypeOf(box), "value").set.call(box, %s);
    box.dispatchEvent(new Event("input", {bubbles: true}));
    setTimeout(() => box.dispatchEvent(new KeyboardEvent("keydown", {key: "Enter", bubbles: true})), 300);
    setTimeout(() => box.dispatchEvent(new KeyboardEvent("keypress", {key: "Enter", bubbles: true})), 300);
}"""
CLICK = """document.querySelector("button#%s, #%s button").click()"""
SECONDS = 120  # to wait for each step


class Page:
    """A page that is looked at until it shows what is awaited."""

    def __init__(self, url: str):
        self.view = QWebEngineView()
        self.view.resize(1200, 820)
        self.view.show()
        self.view.load(QUrl(url))

    def run(self, script: str):
        """The value of a script."""
        loop, values = QEventLoop(), []
        self.view.page().runJavaScript(script, 0, lambda value: (values.append(value), loop.quit()))
        loop.exec()
        return values[0]

    def sleep(self, milliseconds: int) -> None:
        loop = QEventLoop()
        QTimer.singleShot(milliseconds, loop.quit)
        loop.exec()

    def until(self, condition) -> dict:
        """What is shown once the condition holds."""
        for _ in range(2 * SECONDS):
            self.sleep(500)
            shown = json.loads(self.run(SHOWN) or "{}")
            if shown and condition(shown):
                return shown
        raise TimeoutError(f"After {SECONDS} s the page shows {shown}.")


def has(shown: dict, counter: str, value: int) -> bool:
    return f"{counter}\t{value}" in shown["counters"]


def main(url: str, screenshot: str) -> None:
    application = QApplication(sys.argv[:1])
    page, steps = Page(url), []
    steps.append(page.until(lambda shown: has(shown, "turns", 0) and shown["text"] is not None))
    for turn, text in enumerate(("w1 w2", "w3"), start=1):
        page.run(SAY % json.dumps(text))
        steps.append(page.until(lambda shown, turn=turn: has(shown, "turns", turn) and shown["picture"] > 0))
    page.run(CLICK % ("nap", "nap"))
    steps.append(page.until(lambda shown: has(shown, "in the window", 0)))
    page.run(CLICK % ("save", "save"))
    steps.append(page.until(lambda shown: shown["file"]))
    page.run(CLICK % ("nap", "nap"))
    steps.append(page.until(lambda shown: shown["error"]))
    page.sleep(1000)
    page.view.grab().save(screenshot)
    print(json.dumps(steps))
    del page, application


if __name__ == "__main__":
    main(*sys.argv[1:])
