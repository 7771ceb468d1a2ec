"""What the store's tests share: assertions explained in the suite, stores opened and closed with the test."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("tests.meta.contract_suite")
