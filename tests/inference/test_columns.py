"""The columns of predictions are declared, and never hide one of the input."""

import pyarrow as pa
import pytest

from tfray.config import GenerationConfig, InferenceConfig
from tfray.errors import InputError
from tfray.inference.columns import Task, added_fields, output_schema
from tfray.inference.write import column_of

TASKS: list[Task] = ["generate", "classify", "score", "embed"]


@pytest.mark.parametrize("task", TASKS)
def test_every_task_declares_its_error_as_text_and_provenance_on_request(task: Task) -> None:
    fields = added_fields(task, GenerationConfig(n_best=2), InferenceConfig(provenance=True), 8)
    schema = output_schema(pa.schema([("id", pa.int8())]), fields, "")
    assert schema.field("error").type == pa.string()
    assert schema.names[0] == "id" and schema.names[-2:] == ["file", "row"]
    for field in fields:
        nothing = column_of([None, None], field.type)
        assert nothing.type == field.type and nothing.null_count == 2


@pytest.mark.parametrize("name", ["prediction", "score", "error", "n_segments"])
def test_an_input_column_of_the_same_name_is_refused(name: str) -> None:
    fields = added_fields("generate", GenerationConfig(), InferenceConfig(), 8)
    with pytest.raises(InputError, match=f"{name}.*prefix"):
        output_schema(pa.schema([(name, pa.string())]), fields, "")
    assert f"p_{name}" in output_schema(pa.schema([(name, pa.string())]), fields, "p_").names
