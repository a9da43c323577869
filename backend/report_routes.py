"""The routes of the progress report; the backend's authentication covers them."""

from flask import Flask, Response, request

from backend.label_studio import LabelStudioClient
from backend.report import ReportReader
from backend.report_page import ListedProject, render_list, render_report
from backend.service import Service


def install_report_routes(app: Flask, service: Service) -> None:
    """Add `/report` and `/report/ID` to the application.

    Args:
        app: the backend's application.
        service: its settings and job store.
    """
    settings = service.settings
    client = LabelStudioClient(
        settings.label_studio_url, settings.label_studio_api_key.get_secret_value()
    )
    reader = ReportReader(settings, store=service.store, client=client)
    app.add_url_rule("/report", "report_list", lambda: _list(reader))
    app.add_url_rule(
        "/report/<int:project_id>", "report", lambda project_id: _report(reader, project_id)
    )


def _list(reader: ReportReader) -> Response:
    listed = []
    for project in reader.projects():
        latest = reader.latest(project)
        macro_f1 = latest.metrics.get("macro_f1") if latest else None
        listed.append(
            ListedProject(
                project.id,
                project.serving_version or "",
                latest.n_labels if latest else 0,
                macro_f1 if isinstance(macro_f1, float) else None,
            )
        )
    return _page(render_list(listed))


def _report(reader: ReportReader, project_id: int) -> Response:
    """One report; with `?saved` one that does not follow the backend, to be kept as a file."""
    report = reader.read(project_id)
    return _page(render_report(report, is_live="saved" not in request.args))


def _page(html: str) -> Response:
    response = Response(html, mimetype="text/html")
    response.headers["Cache-Control"] = "no-store"
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Referrer-Policy"] = "no-referrer"
    return response
