"""From the name a sequence has inside vLLM to the X-Request-Id it came with.

vLLM 0.26 to 0.33 build the name as [child index "_"] prefix "-" request id [part] "-" 8 random hex digits, read off
its serving classes (`_base_request_id`), `ParentRequest.get_child_info` and `InputProcessor.assign_request_id`:

    chat, messages     chatcmpl-R          several prompts: chatcmpl-R_0
    completions        cmpl-R-0            the prompt's index, always
    embeddings         embd-R-0            long texts in pieces: embd-R-prompt-0-chunk-0
    pooling, classify, score and rerank    pooling-R-0, classify-R-0, score-R-0
    speech             transcribe-R, translate-R, with -0 for each piece, -lang_detect
    beam search        cmpl-R-…-beam-0, chatcmpl-R-…-beam-0, with random hex digits between
    n > 1              0_chatcmpl-R
    responses          I_0                 not R: the header is ignored, and I is the answer's own id, the body's
                                           `request_id`, which vLLM else makes up as resp_…
    late interaction   late-interaction-…  nothing of the request

A request id may contain dashes and end like one of these parts, so there can be several readings.
"""

import re
from collections.abc import Iterator

_PREFIXES = (
    r"(?:(chatcmpl|cmpl|embd|pooling|classify|score|transcribe|translate|generate-tokens|generative-scoring|decision)-)"
)
_PREFIX = re.compile(_PREFIXES)
_CHILD = re.compile(rf"\A\d+_(?={_PREFIXES})")
_RANDOM = re.compile(r"-[0-9a-f]{8}\Z")
_BEAM = re.compile(r"-[0-9a-f]{16,32}-beam-\d+\Z")
_PART = re.compile(r"(?:-prompt-\d+-chunk-\d+|-\d+)\Z")
_SPEECH_PART = re.compile(r"(?:-\d+|-lang_detect)\Z")
_CHAT_PART = re.compile(r"_\d+\Z")
_ALWAYS_PARTED = {"cmpl", "embd", "pooling", "classify", "score", "generative-scoring"}
_SPOKEN = {"transcribe", "translate"}


def request_ids(name: str) -> tuple[str, ...]:
    """The request ids that the engine may have made this name from, the likeliest first; never empty.

    The first of them that was sent is the one. Of /v1/responses it is the id of the answer (`resp_…`), and of a name
    in no known form the name itself.
    """
    return tuple(dict.fromkeys(likely_ids(name)))


def likely_ids(name: str) -> Iterator[str]:
    """The same one by one, some of them twice: seldom is more than the first one asked for."""
    if name.startswith("chatcmpl-") and len(name) > 18 and _RANDOM.match(name, len(name) - 9) and "-beam-" not in name:
        yield name[9:-9]
    yield from _every(name)


def _every(name: str) -> tuple[str, ...]:
    whole = _CHILD.sub("", name)
    cut = _RANDOM.sub("", whole)
    # VLLM_DISABLE_REQUEST_ID_RANDOMIZATION leaves the random digits away
    readings = [*_readings(cut), *(_readings(whole) if cut != whole else ())]
    return tuple(reading for reading in readings if reading) or (name,)


def _readings(name: str) -> list[str]:
    """Without prefix and part, and then without the prefix only, or the other way round where the part is rare."""
    stem = _BEAM.sub("", name)
    match = _PREFIX.match(stem)
    if match is None:
        return [_CHAT_PART.sub("", stem), stem]
    kind, rest = match[1], stem[match.end() :]
    if kind in _ALWAYS_PARTED and stem == name:
        return [_PART.sub("", rest), rest]
    part = _SPEECH_PART if kind in _SPOKEN else _CHAT_PART
    return [rest, part.sub("", rest)]
