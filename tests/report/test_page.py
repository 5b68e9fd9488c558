"""The report: one complete HTML file without references to others, rendered in a browser."""

import html
import re
import shlex
import shutil
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from browser import CHROMIUM, browser

import xbp
from xbp.datasets import load_mnist, standardize_images
from xbp.report import contents, figures
from xbp.report.figures import Curve
from xbp.report.run import Run, load_history
from xbp.training import load_model

VOID = {"meta", "link", "br", "img"}
FOREIGN = {"path", "use", "rect"}  # of SVG, which may close themselves


class Structure(HTMLParser):
    """The content of a page; an element without its closing tag is an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.headings: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        assert len(attrs) == len(dict(attrs)), f"an attribute of {tag} comes twice"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("h1", "h2", "h3"):
            self.headings.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"{tag} closes what is no {tag}"

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += data

    def of(self, *tags: str) -> list[dict[str, str]]:
        return [attributes for tag, attributes in self.elements if tag in tags]


@pytest.fixture(scope="module")
def source(trained):
    return (trained.folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(source):
    return Structure(source)


class TestPage:
    def test_sections(self, page):
        labels = [section["aria-labelledby"] for section in page.of("section")]
        assert labels == ["learning", "confusion", "mistakes", "model", "inside", "run"]
        assert set(labels) <= {attributes.get("id") for attributes in page.of("h2")}
        assert page.headings[0] == "h1"
        assert page.headings.count("h1") == 1
        for tag in ("header", "main", "footer", "title"):
            assert len(page.of(tag)) == 1

    def test_nothing_is_fetched(self, source, page):
        """Every reference is to the page itself; addresses occur in visible text only."""
        for _tag, attributes in page.elements:
            for name in ("src", "href", "xlink:href", "srcset", "action", "data", "poster"):
                assert re.match(r"data:|#|$", attributes.get(name) or "")
            assert "url(" not in re.sub(r"url\(#", "", " ".join(map(str, attributes.values())))
        style = re.search("<style>(.*?)</style>", source, re.DOTALL)[1]
        assert "url(" not in style
        assert "@import" not in style
        assert "://" not in source.replace(page.text, "")
        assert page.of("script", "iframe", "object", "embed", "base", "form") == []
        assert not any(name.startswith("on") for _, a in page.elements for name in a)

    def test_ids_are_unique_and_references_have_one(self, source, page):
        ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
        assert len(ids) == len(set(ids))
        used = re.findall(r'(?:href="#|url\(#)([^")]+)', source)
        assert used
        assert set(used) <= set(ids)

    def test_pictures_say_what_they_show(self, page):
        assert all("alt" in attributes for attributes in page.of("img"))
        for attributes in page.of("svg"):
            assert attributes["role"] == "img"
            assert attributes["aria-label"]
        assert len(page.of("svg")) == 3

    def test_colours_of_the_figures_are_the_pages(self, source):
        for svg in re.findall("<svg.*?</svg>", source, re.DOTALL):
            assert set(re.findall(r"(?:stroke|fill): ?([^;\"]+)", svg)) <= {
                "none",
                *(f"var({name})" for name in figures.VARIABLES.values()),
            }
            assert "<text" in svg  # text stays text

    def test_numbers(self, trained, page):
        run, history = Run.load(trained.folder), load_history(trained.folder)
        final = history.records[-1]["val_accuracy"]
        assert f"{100 * final:.2f} %" in page.text
        assert f"wrong of 500{round(500 * (1 - final))}" in page.text
        assert "61,706" in page.text
        assert "16 × 10 × 10" in page.text
        assert f"{run.rate:,.0f}" in page.text
        assert run.environment["processor"] in page.text
        assert run.environment["accelerators"] in page.text
        for record in history.records:
            assert f"{record['loss']:.4f}{100 * record['accuracy']:.2f} %" in page.text

    def test_the_command_repeats_the_run(self, trained, page, source, command, tmp_path):
        shown = html.unescape(re.search("<code>(.*?)</code>", source, re.DOTALL)[1])
        assert shown == Run.load(trained.folder).command
        assert shown.startswith("xbp train lenet5 --epochs 3 --batch-size 50 --seed 0 --data-dir ")
        words = shlex.split(shown)[1:]
        assert words[words.index("--data-dir") + 1] == str(trained.data)
        words[words.index("--output") + 1] = str(tmp_path)
        words[words.index("--epochs") + 1] = "1"  # a short test: running without error is enough
        assert command(*words).code == 0

    def test_names_are_no_markup(self, trained, source, page):
        assert str(trained.data) not in source
        assert page.of("b") == [{}] * len(page.of("b"))
        assert str(trained.data) in page.text

    def test_confusion_matrix(self, trained, source):
        table = re.search('<table class="matrix">.*?</table>', source, re.DOTALL)[0]
        body = re.search("<tbody>(.*?)</tbody>", table, re.DOTALL)[1]
        cells = [re.findall(r"<td[^>]*>(\d+)</td>", row) for row in body.split("<tr>")[1:]]
        _, (x, y) = load_mnist(trained.data)
        model = load_model(trained.folder / "model.safetensors")
        predicted = np.argmax(model(standardize_images(x)), axis=1)
        expected = np.zeros((10, 10), int)
        np.add.at(expected, (y, predicted), 1)
        assert np.array(cells, int).tolist() == expected.tolist()

    def test_later_and_again_it_is_the_same(self, trained, command, tmp_path):
        path = tmp_path / "again.html"
        result = command("report", trained.folder, "--output", path)
        assert result.code == 0, result
        assert result.out == f"wrote {path}\n"
        assert path.read_bytes() == (trained.folder / "report.html").read_bytes()


class TestOtherRuns:
    LAST = '"steps": {"epoch": [2.1, 2.6], "loss": [0.2, 0.1], "lr": [0.002, 0.001]}'

    @pytest.fixture
    def copy(self, trained, tmp_path):
        return shutil.copytree(trained.folder, tmp_path / "copy")

    def test_only_the_last_steps(self, copy, command):
        """The record of a run that was resumed from a checkpoint."""
        path = copy / "run.json"
        text = re.sub(r'"steps": \{.*?\}', self.LAST, path.read_text(), flags=re.DOTALL)
        path.write_text(text)
        assert command("report", copy).code == 0
        page = Structure((copy / "report.html").read_text())
        assert "of the batches as they came" not in page.text

    def test_an_interrupted_epoch(self, copy, command):
        path = copy / "history.csv"
        lines = path.read_text().splitlines()
        path.write_text("\n".join([*lines[:-1], ",".join(lines[-1].split(",")[:4]) + ",,"]))
        assert command("report", copy).code == 0
        assert "–" in Structure((copy / "report.html").read_text()).text

    @pytest.mark.parametrize(
        "options",
        [
            ["--variant", "1998"],
            ["--classes", 40],
            ["--dtype", "float64", "--activation", "tanh", "--pool", "average"],
        ],
        ids=str,
    )
    def test_other_models(self, trained, command, tmp_path, options):
        words = ["train", "lenet5", "--limit", 200, "--epochs", 1, "--data-dir", trained.data]
        result = command(*words, *options, "--report", "--output", tmp_path)
        assert result.code == 0, result
        assert result.out.splitlines()[-1] == (
            "wrote history.csv, model.safetensors, run.json, learning_curves.png, "
            f"confusion_matrix.png, report.html to {tmp_path}"
        )
        Structure((tmp_path / "report.html").read_text())

    def test_another_backend(self, trained, command, tmp_path):
        pytest.importorskip("array_api_strict")
        words = ["report", trained.folder, "--output", tmp_path / "page.html"]
        assert command(*words, "--backend", "array_api_strict").code == 0
        Structure((tmp_path / "page.html").read_text())


class TestMistakes:
    def refused(self, result, *parts: str) -> None:
        assert result.code == 2, result
        assert result.err.startswith("Error: ")
        assert result.err.count("\n") == 1, result.err
        for part in parts:
            assert part in result.err

    @pytest.mark.parametrize("name", ["jinja2", "matplotlib.figure"])
    def test_a_package_is_missing(self, command, monkeypatch, tmp_path, name):
        """The error comes before training."""
        monkeypatch.setitem(sys.modules, name, None)
        output = tmp_path / "out"
        result = command("train", "lenet5", "--report", "--output", output)
        self.refused(result, name.partition(".")[0], "pip install")
        assert not output.exists()

    def test_folders(self, trained, command, tmp_path):
        self.refused(command("report", tmp_path / "none"), "is no folder")
        self.refused(command("report", tmp_path), "run.json")
        self.refused(command("report", trained.folder, "--output", tmp_path), "is a folder")

    @pytest.mark.parametrize(
        ("pattern", "new", "part"),
        [
            (r"^", "x", "JSON"),
            (r"^\{", '{"x": NaN,', "NaN"),
            (r"^.*$", "[]", "no record"),
            (r"^.*$", "[" * 100_000, "JSON"),
            (r'"seed": 0', '"seed": "0"', "seed"),
            (r'"seed": 0', '"seed": true', "seed"),
            (r'"rate": \S+', '"rate": 1e999,', "rate"),
            (r'"seconds": \[', '"seconds": [null, ', "seconds"),
            (r'"title": "LeNet-5",', "", "title"),
            (r'"lr": \[', '"lr": [1, ', "steps"),
            (r'"started": "', '"started": "never', "started"),
        ],
    )
    def test_a_record_that_is_none(self, trained, command, tmp_path, pattern, new, part):
        folder = shutil.copytree(trained.folder, tmp_path / "copy")
        path = folder / "run.json"
        text, count = re.subn(pattern, new, path.read_text(), count=1, flags=re.DOTALL)
        assert count == 1
        path.write_text(text)
        self.refused(command("report", folder), repr(str(path)), part)

    @pytest.mark.parametrize(
        "content", ["", "epoch,lr\n1,2\n", "epoch,lr,loss\n1,2,x\n", "epoch,lr,loss\n1,2,3,4\n"]
    )
    def test_a_history_that_is_none(self, trained, command, tmp_path, content):
        folder = shutil.copytree(trained.folder, tmp_path / "copy")
        (folder / "history.csv").write_text(content)
        self.refused(command("report", folder), "history.csv")

    def test_no_weights(self, trained, command, tmp_path):
        folder = shutil.copytree(trained.folder, tmp_path / "copy")
        (folder / "model.safetensors").unlink()
        self.refused(command("report", folder), "model.safetensors")

    def test_the_set_is_elsewhere_now(self, trained, command, tmp_path):
        folder, data = tmp_path / "copy", tmp_path / "set"
        shutil.copytree(trained.folder, folder)
        shutil.copytree(trained.data, data)
        path = folder / "run.json"
        path.write_text(path.read_text().replace(trained.data.name[:3], "gone"))
        self.refused(command("report", folder), "gone")
        assert command("report", folder, "--data-dir", data).code == 0

    def test_another_set(self, trained, command, tmp_path):
        folder = shutil.copytree(trained.folder, tmp_path / "copy")
        path = folder / "run.json"
        path.write_text(path.read_text().replace('"test_images": 500', '"test_images": 999'))
        self.refused(command("report", folder), "not the one of this run", "--data-dir")


class TestContents:
    def test_mistakes_are_the_surest(self, trained):
        _, (x, y) = load_mnist(trained.data)
        model = load_model(trained.folder / "model.safetensors")
        tested = contents.examine(model, x, y, 10)
        logits = np.asarray(model(standardize_images(x)), np.float64)
        shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        surest = sorted((-p.max(), i) for i, p in enumerate(shares) if p.argmax() != y[i])
        found = [m.number for m in tested.mistakes]
        assert found == [i for _, i in surest[: contents.MISTAKES]]
        first = tested.mistakes[0]
        assert first.label == y[first.number]
        assert first.predicted == shares[first.number].argmax() != first.label
        assert first.probability == pytest.approx(shares[first.number].max(), rel=1e-5)
        assert first.probability_of_label == pytest.approx(shares[first.number, first.label])
        assert tested.wrong == len(surest)
        assert (first.image == x[first.number]).all()

    def test_what_each_layer_makes(self, trained):
        _, (x, _) = load_mnist(trained.data)
        model = load_model(trained.folder / "model.safetensors")
        rows = contents.feature_maps(model, x[3])
        assert [row.name for row in rows] == [
            "0",
            "1",
            "2",
            "3",
            "4",
            "5",
            "7",
            "8",
            "9",
            "10",
            "11",
        ]
        assert [len(row.maps) for row in rows][:7] == [6, 6, 6, 16, 16, 16, 1]
        conv = np.asarray(model[0](standardize_images(x[3:4])))[0]
        assert np.allclose(rows[0].maps[2], conv[2])
        logits = np.asarray(model(standardize_images(x[3:4])))[0]
        assert np.allclose(rows[-1].maps[0].reshape(-1), logits, atol=1e-5)

    def test_filters(self):
        model = xbp.models.LeNet5(rng=0)
        filters = contents.first_filters(model, (28, 28))
        assert (filters.name, filters.kind, len(filters.weights)) == ("0", "Conv2d", 6)
        assert (filters.weights[4] == model.state_dict()["0.weight"][4, 0]).all()
        dense = contents.first_filters(xbp.models.MLP(784, 5, 2, rng=0), (28, 28))
        assert [each.shape for each in dense.weights] == [(28, 28)] * 5
        assert contents.first_filters(xbp.models.MLP(3, 2, rng=0), (28, 28)) is None


class TestFigures:
    def pixels(self, uri: str) -> np.ndarray:
        import base64
        import io

        from PIL import Image

        return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))

    def test_signed(self):
        pixels = self.pixels(figures.signed(np.array([[2.0, 0.0, -1.0]])))
        assert pixels[0, 0].tolist() == [*figures.POSITIVE, 255]
        assert pixels[0, 1, 3] == 0
        assert pixels[0, 2].tolist() == [*figures.NEGATIVE, 128]
        assert (self.pixels(figures.signed(np.zeros((2, 2)))) == 0).all()

    def test_ink(self):
        assert self.pixels(figures.ink(np.array([[0, 7]], np.uint8))).tolist() == [[[0, 0], [0, 7]]]

    def test_a_curve_of_one_point_and_one_of_zeros(self):
        for scale in ("linear", "log", "percent"):
            lines = [Curve("a", [1.0], [0.5]), Curve("b", [], [])]
            Structure(figures.curves("x", "one point", lines, scale=scale))


@pytest.fixture(scope="module")
def chromium():
    with browser() as page:
        yield page


@pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium")
class TestInABrowser:
    CONTRAST = """
        (() => {
          const light = c => { const v = c.match(/[\\d.]+/g).slice(0, 3).map(x => {
            x /= 255; return x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4; });
            return 0.2126 * v[0] + 0.7152 * v[1] + 0.0722 * v[2]; };
          const page = light(getComputedStyle(document.body).backgroundColor);
          const of = (s, what) => [...document.querySelectorAll(s)].map(e => {
            const l = light(getComputedStyle(e)[what]);
            return (Math.max(l, page) + 0.05) / (Math.min(l, page) + 0.05); });
          return [Math.min(...of("h1, h2, h3, p, dt, dd, th, figcaption, .right", "color")),
                  Math.min(...of("svg text", "fill")), page];
        })()
    """

    @pytest.mark.parametrize("width", [1280, 400])
    @pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
    def test_shown(self, chromium, trained, width, dark):
        path = trained.folder / "report.html"
        chromium.open(path, width, dark=dark)
        assert chromium.complaints() == []
        assert chromium.requests() == [path.absolute().as_uri()]
        # tables may scroll in their boxes, the page may not
        assert chromium.evaluate("document.documentElement.scrollWidth") <= width
        text, figure, background = chromium.evaluate(self.CONTRAST)
        assert text >= 4.5  # WCAG 2, level AA
        assert figure >= 4.5
        assert (background < 0.1) == dark
        heights = (
            "[...document.querySelectorAll('svg text')].map(e => e.getBoundingClientRect().height)"
        )
        assert min(chromium.evaluate(heights)) >= 10
        broken = "[...document.images].filter(i => !i.complete || !i.naturalWidth).length"
        assert chromium.evaluate(broken) == 0
        assert chromium.evaluate("document.images.length") > 50

    def test_a_page_that_fetches_and_complains_is_noticed(self, chromium, tmp_path):
        path = tmp_path / "bad.html"
        path.write_text('<img src="none.png"><script>throw Error("no")</script>')
        chromium.open(path, 400)
        assert len(chromium.requests()) == 2
        assert chromium.complaints()
