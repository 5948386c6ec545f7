"""``README.md`` of a bundle: the model card, in Markdown, from the passport alone."""

from collections.abc import Mapping
from typing import Any

from rapid_dist.privacy.statement import rounded_up

CARD = "README.md"


def model_card(passport: Mapping[str, Any]) -> str:
    """Returns the card; what a file name or a licence could do to Markdown is taken out."""
    model, claim, ledger = passport["model"], passport["claim"], passport["ledger"]
    chosen = passport["selection"]
    spent = ledger["dataset_epsilon"]
    everything = rounded_up(spent) if spent else "secret: the price of the choice rests on it"
    classes = ", ".join(plain(name) for name in model["classes"]) or "none"
    kind = "grey" if model["channels"] == 1 else "colour"
    data = "\n".join(
        f"| {plain(one['source'])} | {plain(one['used_for'])} | {plain(one['licence'])} |"
        for one in passport["public_data"]
    )
    sentences = "\n\n".join(plain(sentence) for sentence in claim["sentences"])
    return f"""\
---
library_name: rapid-dist
tags: [differential-privacy, diffusion, image-generation]
privacy:
  epsilon: {rounded_up(claim["epsilon"])}
  delta: {claim["delta"]:g}
  relation: {claim["relation"]}
  unit: {claim["unit_name"]}
---

# {plain(model["name"])}

A diffusion model that draws {model["size"]}x{model["size"]} {kind} images like those of the private
data set `{plain(ledger["dataset"])}`, with a differential-privacy guarantee. Classes: {classes}.

## Privacy

{sentences}

| accountant | epsilon at delta {claim["delta"]:g} |
|---|---|
| PLD (claimed is the larger of PLD and PRV) | {rounded_up(claim["accountants"]["pld"])} |
| PRV | {rounded_up(claim["accountants"]["prv"])} |
| RDP, for comparison | {rounded_up(claim["accountants"]["rdp"])} |
| all runs on the data set together | {everything} |

{plain(chosen["sentence"]) if chosen else "No sweep chose this model."}

`passport.html` says what this means and how to check it, `passport.json` says it to a program.

## Use

```python
from pathlib import Path
import numpy as np
from rapid_dist.release.generator import Generator

images = Generator.open(Path("BUNDLE")).generate(np.zeros(8, np.int64), seed=1)
```

`unet/` opens with `diffusers.UNet2DModel.from_pretrained`; `sampler.py` is the same sampler as an
MLflow model from code. Before first use: `rapid-dist release verify BUNDLE --key signer.pub`.
`sbom.json` lists the software that it was made with (CycloneDX).

Made for: synthetic images where the private ones may not go. Drawing more images costs no privacy.

## Limits

- What holds for many {plain(claim["unit_name"])}s is what the model has learnt; differential
  privacy hides single ones, not what they share.
- Quality was measured against private records. Those figures are internal and not in this bundle.
- {plain(passport["memorisation"]["said"])}
- Samples may look like the public images that the bundle carries; their licences hold.

## Public data

| source | used for | licence |
|---|---|---|
{data or "| none | | |"}

## Who

Released {passport["created"]} by {plain(passport["signer"]["name"])}, key
`{passport["signer"]["key"]}`; code `{passport["code"]["sha256"]}`; ledger head `{ledger["head"]}`.
"""


def plain(text: object) -> str:
    """Returns text that is one line and no markup, whatever somebody has put into a name."""
    line = " ".join(str(text).split())
    for mark in "\\`*_[]<>|#":
        line = line.replace(mark, f"\\{mark}" if mark != "\\" else "\\\\")
    return line
