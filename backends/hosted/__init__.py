"""Models that somebody else hosts, by litellm: for services that speak no OpenAI API of their own.

It needs the extra `hosted`. What speaks the OpenAI API needs none of this (`backends.openai_http`).
"""

from backends.hosted.backend import HostedBackend
from backends.hosted.settings import HostedSettings

__all__ = ["HostedBackend", "HostedSettings"]
