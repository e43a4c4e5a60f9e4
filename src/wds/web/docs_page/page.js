// Shows this service's OpenAPI document. Swagger UI takes further settings from the page's query,
// whose document to show among them; so the page is never shown with one.

"use strict";

SwaggerUIBundle({
  url: "/docs/openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  validatorUrl: null, // a stranger's; it would be told where this service is
});
