"""What a person reads of a plan before it is carried out."""

from basis_sharing.reports.tables.forecast import forecast_table, plan_sentences
from samples import forecast, plan, prediction


def test_a_forecast_and_what_its_plan_consists_of() -> None:
    table = forecast_table(forecast())
    assert [column.name for column in table.columns] == ["removed", "auto", "svd"]
    assert table.rows == (("20 %", "1.13 (0.90)", "> 100 (0.90)"), ("50 %", "3.49 (0.90)", "-"))
    sentences = plan_sentences(forecast())
    assert sentences[0] == (
        "The plan removes 30.00 % of the compressible parameters; 2 groups, of which 1 share across layers and 1 "
        "across roles."
    )
    for words in (
        "expected loss would be 10.0 % higher in the same size.",
        "The rank multiple costs 0.0500 nats per token",
        "Planned without gradients",
    ):
        assert any(words in sentence for sentence in sentences)
    unscaled = plan().model_copy(update={"prediction": prediction(scale=None, scale_error=None, text=None)})
    assert any("--evaluate TEXT" in sentence for sentence in plan_sentences(forecast(plan=unscaled)))
