"""botocore: clients as boto3 has them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.integrations.adapters.boto3 import Boto, S3Client, keywords

if TYPE_CHECKING:
    from types import ModuleType

    from tests.integrations.frame import Client, Options, Server


class _Client(S3Client):
    def make(self, server: Server) -> Any:
        made = keywords(self.options, server)
        given = {key: made.pop(key) for key in self.options.given}
        return self.library.get_session(**given).create_client("s3", **made)


class _Botocore(Boto):
    name = "botocore"
    plain = "botocore.session"

    def client(self, library: ModuleType, options: Options) -> Client:
        return _Client(library, options)


ADAPTERS = [_Botocore()]
