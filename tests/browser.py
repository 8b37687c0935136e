"""A Chromium without a window, controlled through a pipe (the DevTools protocol)."""

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
KEYS = {"Enter": 13, "ArrowLeft": 37, "ArrowRight": 39, "ArrowDown": 40}


def browser():
    """The path of a browser, or None."""
    return next((found for name in BROWSERS if (found := shutil.which(name))), None)


class Page:
    """One page of a browser that is open within a ``with`` block.

    Args:
        width: The width of the window.
        height: The height of the window.
        zoom: Pixels of a screenshot for each pixel of the window.
    """

    def __init__(self, width=1500, height=1000, zoom=1):
        self._size = {"width": width, "height": height, "deviceScaleFactor": zoom, "mobile": False}
        self._number = 0
        self._read = b""

    def __enter__(self):
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        read, self._out = os.pipe()
        self._in, write = os.pipe()

        command = [browser(), "--headless=new", "--remote-debugging-pipe", "--disable-gpu"]
        command += [f"--user-data-dir={self._profile.name}", "--no-first-run", "--hide-scrollbars"]
        if os.geteuid() == 0:
            command.append("--no-sandbox")
        # The browser reads commands from descriptor 3 and writes answers to descriptor 4.
        command = ["bash", "-c", f'exec "$@" 3<&{read} 4>&{write}', "browser", *command]
        self._process = subprocess.Popen(command, pass_fds=(read, write), stderr=subprocess.DEVNULL)
        os.close(read)
        os.close(write)
        target = self._send("Target.createTarget", url="about:blank")["targetId"]
        attached = self._send("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        self.send("Emulation.setDeviceMetricsOverride", **self._size)
        return self

    def __exit__(self, *_):
        self._send("Browser.close")
        self._process.wait(30)
        os.close(self._out)
        os.close(self._in)
        self._profile.cleanup()

    def send(self, method, **options):
        """Sends a command to the page and returns its result."""
        return self._send(method, self._session, **options)

    def open(self, address):
        """Opens an address."""
        self.send("Page.navigate", url=str(address))

    def run(self, script):
        """The value of a JavaScript expression."""
        done = self.send("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def wait_for(self, script, seconds=60):
        """Waits until a JavaScript expression is true, and returns its value."""
        end = time.monotonic() + seconds
        while not (value := self.run(script)):
            assert time.monotonic() < end, f"not within {seconds} s: {script}"
            time.sleep(0.1)
        return value

    def choose_file(self, selector, path):
        """Gives a file to an input of the page, as a drop or the dialogue does."""
        root = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.send("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def click(self, element):
        """Clicks in the middle of an element, given as a JavaScript expression."""
        self.run(f"{element}.scrollIntoView({{block: 'nearest'}})")
        box = self._box(element)
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        where = {"x": x, "y": y, "button": "left", "clickCount": 1}
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, **where)

    def type(self, text):
        """Types a text where the cursor is."""
        self.send("Input.insertText", text=text)

    def press(self, key):
        """Presses a key of `KEYS`."""
        code = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key]}
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, **code)

    def screenshot(self, element=None):
        """What is visible as a PNG file, or one element, given as a JavaScript expression."""
        clip = {} if element is None else {"clip": {**self._box(element), "scale": 1}}
        shot = self.send("Page.captureScreenshot", format="png", **clip)
        return base64.b64decode(shot["data"])

    def _box(self, element):
        box = self.run(f"{element}.getBoundingClientRect().toJSON()")
        return {key: box[key] for key in ("x", "y", "width", "height")}

    def _send(self, method, session=None, **params):
        self._number += 1
        command = {"id": self._number, "method": method, "params": params}
        if session is not None:
            command["sessionId"] = session
        os.write(self._out, json.dumps(command).encode() + b"\0")
        while True:
            answer = self._answer()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer["error"]
                return answer["result"]

    def _answer(self):
        while b"\0" not in self._read:
            assert select.select([self._in], [], [], 60)[0], "The browser doesn't answer."
            part = os.read(self._in, 1 << 20)
            assert part, "The browser has closed."
            self._read += part
        answer, self._read = self._read.split(b"\0", 1)
        return json.loads(answer)
