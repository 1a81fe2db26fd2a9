"""What boto3 raises, in one line that names the variable to fix. No line holds a key id or a secret."""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import urlsplit

from boto3.exceptions import Boto3Error
from botocore import exceptions as boto
from botocore.exceptions import BotoCoreError, ClientError
from s3transfer.exceptions import RetriesExceededError

from components.runtime.store.address import CALLERS
from components.runtime.store.object_store import NotInStore
from model.boundary.errors import MoonflowError, Transient, Unavailable

NOT_FOUND = {"404", "NoSuchKey", "NotFound"}
_REFUSED = {
    "403", "AccessDenied", "SignatureDoesNotMatch", "InvalidAccessKeyId", "Forbidden", "ExpiredToken", "InvalidToken",
}  # fmt: skip
_ELSEWHERE = {"301", "PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}
_CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
_KEY_IDS = re.compile(r"\bA[KS]IA[A-Z0-9]{8,}\b")
_TOKEN_FILE = "AWS_WEB_IDENTITY_TOKEN_FILE"
_PROXIES = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy")

# What to fix after which error; the first that fits counts.
_REMEDIES: tuple[tuple[type[Exception] | tuple[type[Exception], ...], str], ...] = (
    (boto.ProfileNotFound, "AWS_PROFILE"),
    (boto.InvalidRegionError, "AWS_REGION"),
    (boto.ConfigParseError, "the file that AWS_CONFIG_FILE or AWS_SHARED_CREDENTIALS_FILE names (else ~/.aws)"),
    (boto.InvalidDefaultsMode, "AWS_DEFAULTS_MODE"),
    (boto.InvalidSTSRegionalEndpointsConfigError, "AWS_STS_REGIONAL_ENDPOINTS"),
    (boto.InvalidS3UsEast1RegionalEndpointConfigError, "AWS_S3_US_EAST_1_REGIONAL_ENDPOINT"),
    (boto.InvalidChecksumConfigError, "AWS_REQUEST_CHECKSUM_CALCULATION or AWS_RESPONSE_CHECKSUM_VALIDATION"),
    (boto.InvalidIMDSEndpointModeError, "AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE"),
    (boto.SSOError, "AWS_PROFILE, or log in with `aws sso login`"),
    ((boto.CredentialRetrievalError, boto.InvalidConfigError), "AWS_PROFILE and the profile that it names"),
    (boto.ParamValidationError, "MOONFLOW_STORE or the address"),
    ((boto.EndpointProviderError, boto.InvalidHostLabelError), "AWS_ENDPOINT_URL_S3"),
    (boto.SSLError, "AWS_CA_BUNDLE or AWS_ENDPOINT_URL_S3"),
    (boto.ProxyConnectionError, "HTTPS_PROXY, HTTP_PROXY or NO_PROXY"),
)


def code_of(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def check_settings(env: Mapping[str, str]) -> None:
    """MoonflowError for a variable that boto3 would cut short, or report in more than one line."""
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        if (value := env.get(name)) and not _is_endpoint(value):
            shown = "a text with '@'" if "@" in value else repr(value)  # which could be a password's end
            raise MoonflowError(
                f"{name} is {shown}, which is not a server's address: write http://host:port or https://..."
            )
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        if (value := env.get(name)) and not re.fullmatch("[A-Za-z0-9-]{1,63}", value):
            raise MoonflowError(f"{name} is {value!r}, which is not a region: write one such as us-east-1")
    for name in (*_CREDENTIALS, "AWS_SESSION_TOKEN"):  # the message must not show its value
        if not re.fullmatch("[!-~]*", env.get(name, "")):
            raise MoonflowError(f"{name} has a space, a line break or a letter beyond ASCII: set it again without")
    given = [name for name in _CREDENTIALS if env.get(name)]
    if len(given) == 1:
        lacking = next(name for name in _CREDENTIALS if name not in given)
        raise MoonflowError(f"{given[0]} is set, but {lacking} is not: set both or neither")
    endpoint = env.get("AWS_ENDPOINT_URL_S3") or env.get("AWS_ENDPOINT_URL") or ""
    if (bundle := env.get("AWS_CA_BUNDLE")) and not endpoint.startswith("http://"):
        try:
            ssl.create_default_context().load_verify_locations(
                **{"capath" if os.path.isdir(bundle) else "cafile": bundle}
            )
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", "") or type(error).__name__
            raise MoonflowError(
                f"AWS_CA_BUNDLE is {bundle!r}, which holds no certificates that can be read ({reason}): name a PEM file"
            ) from None


@contextmanager
def client_errors() -> Iterator[None]:
    """Turn what making a client raises into one line."""
    try:
        yield
    except (BotoCoreError, ValueError, OSError) as error:
        raise _unusable(error) from None


@contextmanager
def request_errors(uri: str, endpoint: str) -> Iterator[None]:
    """Turn what a request about ``uri`` raises into one line."""
    try:
        yield
    except (boto.NoCredentialsError, boto.PartialCredentialsError):
        raise MoonflowError(
            f"no credentials for the object store at {endpoint}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        ) from None
    except ClientError as error:
        raise _answered(error, uri, endpoint) from None
    except (BotoCoreError, Boto3Error, RetriesExceededError) as error:
        cause = error.__cause__ or error.__context__
        if isinstance(cause, ClientError):
            raise _answered(cause, uri, endpoint) from None
        if any(isinstance(error, kinds) for kinds, _ in _REMEDIES):
            raise _unusable(error, f" for {uri}") from None
        proxies = [name for name in _PROXIES if os.environ.get(name)]
        through = f" (or {proxies[0]}, which names a proxy)" if proxies else ""
        raise Transient(
            f"object store at {endpoint} cannot be reached for {uri} ({type(error).__name__}): start it or "
            f"fix AWS_ENDPOINT_URL_S3{through}; `moonflow doctor` checks it"
        ) from None
    except ValueError as error:  # a setting that botocore reads with the first request
        raise _unusable(error, f" for {uri}") from None
    except OSError as error:  # about a local file: only this one is ours to explain
        if not error.filename or error.filename != os.environ.get(_TOKEN_FILE):
            raise
        raise MoonflowError(f"{_TOKEN_FILE} is {error.filename!r}, which cannot be read: mount it or fix it") from None


def _unusable(error: Exception, about: str = "") -> MoonflowError:
    known = (remedy for kinds, remedy in _REMEDIES if isinstance(error, kinds))
    remedy = next(known, "the variables AWS_* and the profile in ~/.aws/config")
    told = _one_line(str(error)) or type(error).__name__
    return MoonflowError(f"the object store cannot be used{about} ({told}): fix {remedy}")


def _answered(error: ClientError, uri: str, endpoint: str) -> MoonflowError:
    code = code_of(error)
    message = _one_line(str(error.response.get("Error", {}).get("Message", "")))
    detail = f"{code}: {message}" if message else code
    if code == "NoSuchBucket":
        return MoonflowError(f"{uri}: no such bucket at {endpoint}: create it or fix MOONFLOW_STORE")
    if code in NOT_FOUND:
        return NotInStore(f"{uri} does not exist at {endpoint}")
    if code in _REFUSED:
        return Unavailable(
            f"object store at {endpoint} refused {uri} ({detail}): check AWS_ACCESS_KEY_ID, "
            "AWS_SECRET_ACCESS_KEY and the bucket's policy"
        )
    if code in _ELSEWHERE:
        return MoonflowError(f"object store at {endpoint} does not serve {uri} here ({detail}): fix AWS_REGION")
    if code == "InvalidBucketName":
        return MoonflowError(f"{uri} has no legal bucket name ({detail}): fix MOONFLOW_STORE or the address")
    if int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)) >= 500:
        return Transient(
            f"object store at {endpoint} could not serve {uri} ({detail}): its disk may be full; free some "
            "space or look at its log, then run again"
        )
    return MoonflowError(f"object store at {endpoint} rejected {uri} ({detail})")


def _is_endpoint(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return (
            re.fullmatch("[!-~]+", text) is not None
            and parts.scheme in ("http", "https")
            and bool(parts.hostname)
            and parts.port != 0
            and not (parts.query or parts.fragment or parts.username)
        )
    except ValueError:  # a port that is no number, half an IPv6 address
        return False


def _one_line(text: str) -> str:
    text = " ".join(text.split())[:300]
    secrets = (*_CREDENTIALS, "AWS_SESSION_TOKEN")
    for name in (*secrets, *(f"{CALLERS}{name}" for name in secrets)):
        if len(value := os.environ.get(name, "")) >= 8:  # a shorter one could be any word
            text = text.replace(value, "***")
    return _KEY_IDS.sub("***", text)
