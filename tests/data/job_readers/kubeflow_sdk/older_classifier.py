import transformers
from kubeflow.storage_initializer.hugging_face import HuggingFaceModelParams, HuggingFaceTrainerParams
from kubeflow.training import TrainingClient

TrainingClient().train(
    name="bert",
    num_workers=1,
    resources_per_worker={"gpu": 1},
    model_provider_parameters=HuggingFaceModelParams(
        model_uri="hf://google-bert/bert-base-cased", transformer_type=transformers.AutoModelForSequenceClassification
    ),
    trainer_parameters=HuggingFaceTrainerParams(training_parameters=transformers.TrainingArguments(output_dir="x")),
)
