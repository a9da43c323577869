"""The token by which the backend enters Label Studio ends: said clearly, a new one goes on."""

from pathlib import Path

import httpx
import pytest
from fault_table import note_seen, note_times
from faulty_proxy import FaultyProxy
from installation import OwnBackend, wait_until
from laboratory import new_laboratory
from own_label_studio import LabelStudioOnSQLite

pytestmark = [pytest.mark.label_studio, pytest.mark.faults]

DEADLINE_S = 300
LIVES_S = 90  # a token that expires; long enough for a first version


def not_ready(backend: OwnBackend) -> str:
    """What /ready says once it answers 503."""
    address = backend.address

    def problem() -> str | None:
        answer = httpx.get(f"{address.url}/ready", auth=(address.user, address.password))
        return answer.text if answer.status_code == 503 else None

    return wait_until(problem, deadline_s=DEADLINE_S, what="503")


@pytest.mark.parametrize(
    ("ends", "lives_s"), [("is revoked", None), ("expires", LIVES_S)], ids=["revoked", "expires"]
)
def test_personal_token_that_ends_is_named_and_a_new_one_goes_on(
    label_studio: LabelStudioOnSQLite,
    new_backend: OwnBackend,
    small_sample: Path,
    ends: str,
    lives_s: int | None,
) -> None:
    """The backend's personal access token {ends} while it runs."""
    token = label_studio.personal_token(lives_s=lives_s)
    with (
        new_backend.running(CELLAI_LABEL_STUDIO_API_KEY=token),
        new_laboratory(label_studio, new_backend, small_sample) as laboratory,
    ):
        if lives_s is None:
            label_studio.revoke(token)
        laboratory.annotate(2)
        assert "refuses the API key" in not_ready(new_backend)
        note_seen("refuses the API key")
    with new_backend.running(CELLAI_LABEL_STUDIO_API_KEY=label_studio.personal_token()):
        laboratory.check()


def test_personal_token_while_its_exchange_fails(
    label_studio: LabelStudioOnSQLite,
    new_backend: OwnBackend,
    proxy: FaultyProxy,
    small_sample: Path,
) -> None:
    """A proxy before Label Studio answers 500, in no JSON, where personal tokens are exchanged."""
    with (
        new_backend.running(
            CELLAI_LABEL_STUDIO_API_KEY=label_studio.personal_token(),
            CELLAI_LABEL_STUDIO_URL=proxy.url,
        ),
        new_laboratory(label_studio, new_backend, small_sample) as laboratory,
    ):
        with proxy.failing("500", only="token/refresh"):
            laboratory.annotate(2)
            assert "does not exchange the personal access token" in not_ready(new_backend)
            note_times(proxy.faults)
        laboratory.check()


def test_revoked_token_is_named_and_a_new_one_goes_on(
    label_studio: LabelStudioOnSQLite, new_backend: OwnBackend, small_sample: Path
) -> None:
    """The backend's token is revoked; the backend starts again with a new one.

    Last of the module: the old token is gone afterwards.
    """
    with (
        new_backend.running(),
        new_laboratory(label_studio, new_backend, small_sample) as laboratory,
    ):
        answer = label_studio.connection.post("api/current-user/reset-token/", {})
        label_studio.use_key(answer["token"])
        laboratory.annotate(2)
        assert "refuses the API key" in not_ready(new_backend)
        note_seen("refuses the API key")
    with new_backend.running(CELLAI_LABEL_STUDIO_API_KEY=label_studio.api_key):
        laboratory.check()
