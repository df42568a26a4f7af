"""The columns of predictions are declared, and never hide one of the input."""

import pyarrow as pa
import pytest

from tfray.errors import InputError
from tfray.inference.columns import Prediction, output_schema, with_predictions


def test_the_input_passes_through_with_its_types_and_order() -> None:
    table = pa.table({"id": pa.array([3, 4], pa.int8()), "nested": [[{"a": 1}], None]})
    predicted = with_predictions(table, [Prediction("x", -1.0, None), Prediction(None, None, "empty: none")])
    assert predicted.select(["id", "nested"]).equals(table)
    assert predicted.column_names == ["id", "nested", "prediction", "score", "error"]


def test_types_do_not_follow_from_the_values() -> None:
    table = pa.table({"source": ["a"]})
    all_good = with_predictions(table, [Prediction("x", -1.0, None)])
    all_bad = with_predictions(table, [Prediction(None, None, "bad: row")])
    nothing = with_predictions(table.slice(0, 0), [])
    assert all_good.schema == all_bad.schema == nothing.schema
    assert all_good.schema.field("error").type == pa.string()


@pytest.mark.parametrize("name", ["prediction", "score", "error"])
def test_an_input_column_of_the_same_name_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"{name}.*rename"):
        output_schema(pa.schema([(name, pa.string())]))
