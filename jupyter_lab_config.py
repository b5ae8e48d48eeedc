"""JupyterLab's configuration, for one that is started in this folder. It changes no setting of yours elsewhere."""

c = get_config()  # noqa: F821  (given by traitlets)

# Nothing here asks the network: no news, no look for a newer JupyterLab, no list of extensions to install.
c.LabApp.news_url = None
c.LabApp.check_for_updates_class = "jupyterlab.handlers.announcements.NeverCheckForUpdate"
c.LabApp.extension_manager = "readonly"
