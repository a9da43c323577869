"""The application that gunicorn serves: label-studio-ml's, with our answers.

Start: `gunicorn --config python:backend.gunicorn_conf backend._wsgi:app`.
"""

from flask import Flask
from label_studio_ml.api import init_app

from backend.logs import configure_logging
from backend.model import CellClassifier
from backend.report_routes import install_report_routes
from backend.routes import install_routes
from backend.service import Service
from backend.settings import Settings, read_settings


def create_app(settings: Settings) -> Flask:
    """The backend's application.

    Args:
        settings: read from the environment by the caller.
    """
    configure_logging(settings)
    app: Flask = init_app(CellClassifier, model_dir=str(settings.data_dir / "models"))
    service = Service(settings)
    install_routes(app, service)
    install_report_routes(app, service)
    return app


app = create_app(read_settings())
