from django.apps import AppConfig


class ConfigurationConfig(AppConfig):
    name = "config"
    verbose_name = "configuration"
